"""Figures that runs are judged by, by name, and how sure they are.

A figure of a run is one draw of what might have come: the bootstrap (Efron, 1979) draws others from
the run itself. Neighbouring requests are alike, since they ran in the same batches, so that blocks
of them are drawn (Künsch, 1989), each as long as the square root of how many there are. What this
cannot see is how the machine changes between runs: only several runs tell that.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvrt.bench.figures import TIMES, Floats, summary
from kvrt.bench.words import CUT, Record, Run
from kvrt.errors import ConfigError

DRAWS = 1000
SEED = 1
INSIDE = 95.0
"""Percent of draws between an interval's ends."""

TIME = re.compile(rf"({'|'.join(TIMES)})_(mean|p[0-9]{{1,2}}(?:\.[0-9])?)", re.ASCII)
RATES = ("requests_per_s", "output_tokens_per_s", "prompt_tokens_per_s")
COSTS = ("cost_per_1k_requests", "cost_per_1m_prompt_tokens", "cost_per_1m_cached_tokens",
         "cost_per_1m_output_tokens")  # fmt: skip
WH = "wh_per_1k_requests"
FIGURES = ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "itl_p95", "e2e_p50", "e2e_p95",
           *RATES, "errors")  # fmt: skip
"""What is compared, unless others are asked for."""

KNOWN = ("<time>_mean or <time>_p95 with a time of ttft, tpot, itl, e2e", *RATES, "errors",
         "goodput", *COSTS, WH)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A name that is known.

    Args:
        higher: more is better.
        unit: of its values: seconds, a share, or a plain number.
    """

    name: str
    higher: bool
    unit: str

    @classmethod
    def read(cls, name: str) -> "Figure":
        """
        Raises:
            ConfigError: there is none of that name.
        """
        if TIME.fullmatch(name):
            return cls(name, False, "s")
        if name in RATES:
            return cls(name, True, "")
        if name in ("errors", "goodput"):
            return cls(name, name == "goodput", "%")
        if name in (*COSTS, WH):
            return cls(name, False, "")
        raise ConfigError(
            f"{name!r:.60} is no figure that is known", fix=f"one of {', '.join(KNOWN)}"
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer has to keep for the goodput, in seconds; None: it may be anything."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def kept(self, record: Record) -> bool:
        """Whether an answer is whole and in time. What it has too few tokens for is kept."""
        pairs = ((self.ttft, record.ttft), (self.tpot, record.tpot), (self.e2e, record.e2e))
        return record.good and all(
            limit is None or value is None or value <= limit for limit, value in pairs
        )


def value(run: Run, figure: Figure, limits: Limits | None = None) -> float | None:
    """Of a run; None: it is not known."""
    if TIME.fullmatch(figure.name):
        return _of_time([_values(each, figure.name) for each in _ended(run)], figure.name)
    if figure.name == "goodput":
        ended = _ended(run)
        kept = (limits or Limits()).kept
        return sum(map(kept, ended)) / len(ended) if ended else None
    found = summary(run)
    if figure.name in COSTS:
        each = (found["costs"] or {}).get(figure.name.removeprefix("cost_"))
        return None if each is None else each["value"]
    if figure.name == WH:
        return _known(found["energy"][WH])
    return _known(found[figure.name])


def draws(run: Run, figure: Figure, limits: Limits | None = None) -> Floats | None:
    """Other values that might have come, `DRAWS` of them; None: it cannot be drawn.

    Costs and energy go as requests and tokens come, so that they are not drawn by themselves.
    """
    ended = _ended(run)
    if figure.name in (*COSTS, WH) or not ended:
        return None
    rng = np.random.default_rng(SEED)
    if figure.name in RATES:
        parts = _slices(run, figure.name)
        if parts is None:
            return None
        return np.array([parts[each].mean() for each in _blocks(len(parts), rng)])
    if figure.name == "errors":
        marks = np.array([not each.good for each in ended], dtype=float)
    elif figure.name == "goodput":
        kept = (limits or Limits()).kept
        marks = np.array([kept(each) for each in ended], dtype=float)
    else:
        return _times(ended, figure.name, rng)
    return np.array([marks[each].mean() for each in _blocks(len(marks), rng)])


def interval(values: Floats) -> tuple[float, float]:
    """Where `INSIDE` percent of values are, between what is left on both sides."""
    edge = (100 - INSIDE) / 2
    low, high = np.percentile(values, (edge, 100 - edge))
    return float(low), float(high)


def _blocks(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of `count` values, drawn in blocks of neighbours: (DRAWS, count)."""
    length = max(1, round(math.sqrt(count)))
    starts = rng.integers(0, count, (DRAWS, math.ceil(count / length)))
    whole = (starts[:, :, None] + np.arange(length)) % count  # the end goes on at the beginning
    return whole.reshape(DRAWS, -1)[:, :count]


def _ended(run: Run) -> list[Record]:
    """Requests that were not cut, as they were sent."""
    return [each for each in run.records if each.error != CUT]


def _values(record: Record, name: str) -> Sequence[float]:
    """What a request brings to a time."""
    time = name.partition("_")[0]
    if not record.good:
        return ()
    if time == "itl":
        return record.gaps
    found = getattr(record, time)
    return () if found is None else (found,)


def _of_time(parts: Sequence[Sequence[float]], name: str) -> float | None:
    """The mean or the percentile of all together; None: there are none."""
    whole = np.array([value for part in parts for value in part])
    if not len(whole):
        return None
    point = name.partition("_")[2]
    return float(whole.mean() if point == "mean" else np.percentile(whole, float(point[1:])))


def _times(records: Sequence[Record], name: str, rng: np.random.Generator) -> Floats | None:
    """Means or percentiles of what blocks of requests bring, one for each draw."""
    parts = [part for each in records if len(part := _values(each, name))]
    if not parts:
        return None
    blocks, point = _blocks(len(parts), rng), name.partition("_")[2]
    if max(map(len, parts)) == 1:
        values = np.array(parts)[:, 0][blocks]
        if point == "mean":
            return values.mean(axis=1)  # type: ignore[no-any-return]
        points: Floats = np.percentile(values, float(point[1:]), axis=1)
        return points
    # A request brings many: how often each was drawn is its values' weight, so that they need not
    # be put together and sorted for each draw.
    values = np.concatenate([np.array(part) for part in parts])
    order = np.argsort(values)
    values, owners = values[order], np.repeat(np.arange(len(parts)), [*map(len, parts)])[order]
    found = np.empty(len(blocks))
    for number, drawn in enumerate(blocks):
        weights = np.bincount(drawn, minlength=len(parts))[owners]
        if point == "mean":
            found[number] = (values * weights).sum() / weights.sum()
        else:
            reached = np.cumsum(weights)
            at = np.searchsorted(reached, float(point[1:]) / 100 * reached[-1])
            found[number] = values[min(at, len(values) - 1)]
    return found


def _slices(run: Run, name: str) -> Floats | None:
    """The rate in each of equal parts of the run's time; its mean is the run's rate."""
    good = run.good
    count = max(2, round(math.sqrt(len(good))))
    if not good or run.seconds <= 0:
        return None
    amounts: Mapping[str, Callable[[Record], int]] = {
        "requests_per_s": lambda each: 1,
        "output_tokens_per_s": lambda each: each.tokens,
        "prompt_tokens_per_s": lambda each: each.prompt_tokens or 0,
    }
    begun = min(each.sent for each in run.records)
    found = np.zeros(count)
    for each in good:
        at = int((each.end - begun) / run.seconds * count)
        found[max(0, min(at, count - 1))] += amounts[name](each)
    return found * count / run.seconds


def _known(found: Any) -> float | None:
    return None if found is None else float(found)
