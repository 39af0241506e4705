"""Whether one run is better than another, and whether a run keeps what was agreed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvrt.bench.statistics import Figure, Limits, draws, interval, value
from kvrt.bench.words import Run
from kvrt.errors import ConfigError
from kvrt.units import parse_seconds

Verdict = Literal["better", "worse", "same", "unclear", "unknown"]
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of two runs.

    Args:
        base, other: its values; None: not known.
        ratio: other / base, and where 95 % of what might have come is.
        verdict: better or worse: all of the interval is beyond the tolerance. same: all of it is
            within. unclear: neither. unknown: there is nothing to compare.
    """

    figure: Figure
    base: float | None
    other: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def compared(base: Run, other: Run, figure: Figure, tolerance: float = TOLERANCE) -> Compared:
    """A figure of two runs.

    Args:
        tolerance: what counts as the same: a share of the base's value; of `errors`, a difference.
    """
    ours, theirs = value(base, figure), value(other, figure)
    if ours is None or theirs is None:
        return Compared(figure, ours, theirs, None, None, None, "unknown")
    if figure.unit == "%":
        return _shares(base, other, figure, ours, theirs, tolerance)
    ratio = theirs / ours if ours else math.inf if theirs else 1.0
    drawn = draws(base, figure), draws(other, figure)
    low = high = ratio
    if drawn[0] is not None and drawn[1] is not None:
        count = min(len(drawn[0]), len(drawn[1]))
        # One is turned round, so that equal runs are not taken for draws of each other.
        divisor = np.maximum(drawn[0][:count], 1e-12)
        low, high = interval(drawn[1][:count][::-1] / divisor)
    said = _verdict(low - 1, high - 1, tolerance, higher=figure.higher)
    return Compared(figure, ours, theirs, ratio, low, high, said)


def _shares(
    base: Run, other: Run, figure: Figure, ours: float, theirs: float, tolerance: float
) -> Compared:
    """Shares are compared by their difference: of no errors, one is no share."""
    drawn = draws(base, figure), draws(other, figure)
    low = high = theirs - ours
    if drawn[0] is not None and drawn[1] is not None:
        low, high = interval(drawn[1][::-1] - drawn[0])
    said = _verdict(low, high, tolerance, higher=figure.higher)
    return Compared(figure, ours, theirs, theirs / ours if ours else None, None, None, said)


def _verdict(low: float, high: float, tolerance: float, *, higher: bool) -> Verdict:
    """Of what has changed, between `low` and `high`."""
    if not higher:
        low, high = -high, -low
    if low > tolerance:
        return "better"
    if high < -tolerance:
        return "worse"
    return "same" if low >= -tolerance and high <= tolerance else "unclear"


# --- what was agreed -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure has to be at most so much, or at least, where more is better."""

    figure: Figure
    bound: float

    @classmethod
    def read(cls, text: str) -> "Objective":
        """From ``ttft_p95=500ms``, ``errors=1%`` or ``output_tokens_per_s=100``.

        Raises:
            ConfigError: it is none.
        """
        name, equals, said = text.partition("=")
        if not equals:
            raise ConfigError(
                f"{text!r:.60} is no objective", fix="as in ttft_p95=500ms or errors=1%"
            )
        figure = Figure.read(name.strip())
        return cls(figure, read_bound(said.strip(), figure.unit, name.strip()))

    def kept(self, found: float) -> bool:
        return found >= self.bound if self.figure.higher else found <= self.bound


def read_bound(text: str, unit: str, name: str) -> float:
    """A time, a share such as ``1%``, or a number.

    Raises:
        ConfigError: it is none.
    """
    try:
        if unit == "s":
            found = parse_seconds(text)
        else:
            found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if text.endswith("%") and unit != "%":
                raise ValueError
    except (ConfigError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf:
        wanted = {"s": "a time, as 500ms", "%": "a share, as 1% or 0.01"}.get(unit, "a number")
        raise ConfigError(f"{name}: {text!r:.60} is not {wanted}")
    return found


def read_limits(texts: Sequence[str]) -> Limits:
    """From ``ttft=500ms`` and the like.

    Raises:
        ConfigError: one of them is none.
    """
    found = {}
    for text in texts:
        name, equals, said = text.partition("=")
        if name.strip() not in ("ttft", "tpot", "e2e") or not equals:
            raise ConfigError(
                f"{text!r:.60} is no limit of an answer", fix="ttft, tpot or e2e: ttft=500ms"
            )
        found[name.strip()] = read_bound(said.strip(), "s", name.strip())
    return Limits(**found)


def measured(run: Run, objective: Objective, limits: Limits) -> float:
    """What an objective is about.

    Raises:
        ConfigError: the run does not say.
    """
    name = objective.figure.name
    if name == "goodput" and limits == Limits():
        raise ConfigError(
            "goodput is the share of answers in time, and it was not said what that is",
            fix="add --per-request ttft=500ms",
        )
    found = value(run, objective.figure, limits)
    if found is None:
        raise ConfigError(
            f"{run.name} does not say {name}",
            fix="measure with --cost-per-hour, or where energy is counted"
            if name.startswith(("cost", "wh"))
            else "measure answers of several tokens",
        )
    return found
