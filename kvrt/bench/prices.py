"""What a run costs, with the formula.

    total             price per hour * hours + price per kWh * kWh
    per 1k requests   total / whole answers * 1000
    per 1M tokens     total * weight / (weighted tokens) * 1M

Tokens are of three kinds, which do not cost the same: those of prompts that were computed, those
that were cached, and those of answers. What all cost together is measured; how it is split is
weights, that of a computed token being 1, as price lists have them. So the three figures times
their tokens add up to the total.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvrt.errors import ConfigError
from kvrt.machine.energy import JOULES_PER_KWH

KINDS = ("prompt", "cached", "output")
WEIGHTS = (1.0, 0.1, 4.0)
MOST = 1e9


def read_weights(text: str) -> tuple[float, float, float]:
    """From ``1:0.1:4``: of computed tokens of prompts, cached ones, and those of answers.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = tuple(float(part) for part in text.split(":"))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(0 <= each <= MOST for each in found) or not any(found):
        raise ConfigError(
            f"{text!r:.60} is no weights of tokens",
            fix="three numbers, of computed, cached and new tokens: 1:0.1:4",
        )
    return found[0], found[1], found[2]


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many of each kind; `prompt` without those that were cached."""

    prompt: int
    cached: int
    output: int

    def weighted(self, weights: tuple[float, ...]) -> float:
        counts = (self.prompt, self.cached, self.output)
        return sum(weight * count for weight, count in zip(weights, counts, strict=True))


def costs(
    *,
    seconds: float,
    requests: int,
    tokens: Tokens,
    weights: tuple[float, ...],
    per_hour: float | None,
    per_kwh: float | None,
    joules: float | None,
) -> Mapping[str, Any] | None:
    """What it costs, by name, each with ``value`` and ``formula``; None: no price was given.

    Args:
        joules: None: it is not known, and a price of energy has nothing to be multiplied with.
    """
    if per_hour is None and per_kwh is None:
        return None
    total, parts = 0.0, []
    if per_hour is not None:
        total += per_hour * seconds / 3600
        parts.append(f"{per_hour:g}/h * {seconds:.3f} s / 3600")
    if per_kwh is not None:
        if joules is None:
            return {"total": {"value": None, "formula": "price per kWh * energy, which is unknown"}}
        total += per_kwh * joules / JOULES_PER_KWH
        parts.append(f"{per_kwh:g}/kWh * {joules / JOULES_PER_KWH:.9f} kWh")
    found: dict[str, Any] = {"total": {"value": total, "formula": " + ".join(parts)}}
    if requests:
        found["per_1k_requests"] = {
            "value": total / requests * 1000,
            "formula": f"{total:.6g} / {requests} * 1000",
        }
    whole = tokens.weighted(weights)
    counts = (tokens.prompt, tokens.cached, tokens.output)
    told = " + ".join(f"{w:g} * {n}" for w, n in zip(weights, counts, strict=True))
    for kind, weight, count in zip(KINDS, weights, counts, strict=True):
        if count and whole:
            found[f"per_1m_{kind}_tokens"] = {
                "value": total * weight / whole * 1e6,
                "formula": f"{total:.6g} * {weight:g} / ({told}) * 1000000",
            }
    return found
