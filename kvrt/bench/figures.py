"""What came of a run: times, rates, percentiles.

Percentiles are linear between ranks. Only whole answers count, but for the share of errors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvrt.bench.prices import Tokens, costs
from kvrt.bench.words import CUT, Record, Run

Floats = npt.NDArray[np.float64]
Time = Literal["ttft", "tpot", "itl", "e2e"]
TIMES: tuple[Time, ...] = ("ttft", "tpot", "itl", "e2e")
POINTS = (50, 90, 95, 99)

MEANING: Mapping[Time, str] = {
    "ttft": "time to first token: from sending a request to the first piece of its answer",
    "tpot": "time per output token, of an answer: (last piece - first) / (tokens - 1)",
    "itl": "inter-token latency: between two pieces of an answer that follow each other",
    "e2e": "end to end: from sending a request to the end of its answer",
}

LATE_S = 0.05
"""Requests that were sent so much later than due, at the 99th percentile, tell as much of the one
who asks as of the one who is asked."""


def times_of(records: Sequence[Record], time: Time) -> Floats:
    """All values of a time, in seconds, of whole answers."""
    good = [each for each in records if each.good]
    if time == "itl":
        return np.array([gap for each in good for gap in each.gaps], dtype=np.float64)
    values = (getattr(each, time) for each in good)
    return np.array([each for each in values if each is not None], dtype=np.float64)


def percentile(values: Floats, point: float) -> float | None:
    """None: there are no values."""
    return float(np.percentile(values, point)) if len(values) else None


def spread(values: Floats) -> dict[str, float | int | None]:
    """Mean, percentiles and how many there are."""
    points = {f"p{point}": percentile(values, point) for point in POINTS}
    mean = float(np.mean(values)) if len(values) else None
    return {"count": len(values), "mean": mean, **points}


def tokens_of(run: Run) -> Tokens:
    """Of whole answers. Of a target that does not say what was cached, nothing was."""
    cached = sum(each.cached_tokens or 0 for each in run.good)
    prompt = sum(each.prompt_tokens or 0 for each in run.good)
    return Tokens(prompt - cached, cached, sum(each.tokens for each in run.good))


def first_token_of(run: Run) -> dict[str, Any]:
    """Where the time to a first token passes, on average and in seconds, or why it is not known.

    between    the server knows nothing of it: on the way, in HTTP, in reading what was asked
    queued     until its first step
    computing  until the first token was there
    """
    firsts = [each.pieces[0] for each in run.records if each.pieces]
    if "first_mean" not in run.clocks or not firsts:
        return {"why": run.clocks.get("why", "nobody was asked")}
    whole, known = sum(firsts) / len(firsts), run.clocks["first_mean"]
    queued = min(run.clocks["queued_mean"], known)
    return {"between": max(0.0, whole - known), "queued": queued, "computing": known - queued}


def joules_of(run: Run) -> float | None:
    """Of all counters that have counted; None: none has."""
    known = [each.joules for each in run.energy if each.joules is not None]
    return sum(known) if known else None


def late(run: Run) -> float | None:
    """Seconds from due to sent, at the 99th percentile."""
    return percentile(np.array([each.sent - each.due for each in run.records]), 99)


def errors(run: Run) -> float:
    """The share of requests without a whole answer, of those that were not cut."""
    ended = [each for each in run.records if each.error != CUT]
    return sum(not each.good for each in ended) / len(ended) if ended else 0.0


def memory_of(run: Run) -> dict[str, Any]:
    """Peaks and means of KV memory in bytes, or why they are not known."""
    if not run.held:
        return {"why": run.held_why or "it was not looked at"}
    return {
        "pinned_peak": max(each.pinned for each in run.held),
        "cached_peak": max(each.cached for each in run.held),
        "held_peak": max(each.held for each in run.held),
        "limit": run.held[-1].limit,
        "pinned_mean": sum(each.pinned for each in run.held) / len(run.held),
        "held_mean": sum(each.held for each in run.held) / len(run.held),
    }


def energy_of(run: Run) -> dict[str, Any]:
    """In joules, by counter, and for each request and token."""
    joules, good, tokens = joules_of(run), len(run.good), tokens_of(run)
    counters = [{"name": each.name, "joules": each.joules, "why": each.why} for each in run.energy]
    whole = None if joules is None else joules / 3600
    return {
        "counters": counters,
        "joules": joules,
        "wh_per_1k_requests": whole * 1000 / good if whole is not None and good else None,
        "joules_per_output_token": (
            joules / tokens.output if joules is not None and tokens.output else None
        ),
    }


def summary(run: Run) -> dict[str, Any]:
    """All figures of a run, by name; times are seconds."""
    tokens, good, seconds = tokens_of(run), len(run.good), run.seconds
    cut = sum(each.error == CUT for each in run.records)
    rate = (lambda count: count / seconds) if seconds else (lambda count: None)
    return {
        "seconds": seconds,
        "requests": {"good": good, "failed": len(run.records) - good - cut, "cut": cut},
        "errors": errors(run),
        "tokens": {"prompt": tokens.prompt, "cached": tokens.cached, "output": tokens.output},
        "requests_per_s": rate(good),
        "prompt_tokens_per_s": rate(tokens.prompt + tokens.cached),
        "output_tokens_per_s": rate(tokens.output),
        **{time: spread(times_of(run.records, time)) for time in TIMES},
        "first_token": first_token_of(run),
        "late_p99": late(run),
        "memory": memory_of(run),
        "energy": energy_of(run),
        "costs": costs(
            seconds=seconds,
            requests=good,
            tokens=tokens,
            weights=tuple(run.weights),
            per_hour=run.per_hour,
            per_kwh=run.per_kwh,
            joules=joules_of(run),
        ),
    }
