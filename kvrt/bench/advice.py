"""What holds a run back, by what was measured, and what to try.

    client     requests were sent late: the one who asks
    queue      more is asked than is answered, so that each request waits longer than the last
    memory     requests pin almost all KV memory that there may be
    bandwidth  reading the weights once a step takes almost as long as the steps do
    prompts    most of the time passes before first tokens: arithmetic, or waiting for it
    steps      most of the time passes between tokens, and not in reading weights as far as known

A finding is a number beside a limit, and no more: what is not measured is not named. The network is
not: requests to another machine have its delays in all of their times.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvrt.bench.figures import LATE_S, late, memory_of, percentile, times_of, tokens_of
from kvrt.bench.words import Run

Bottleneck = Literal["client", "queue", "memory", "bandwidth", "prompts", "steps"]

FULL = 0.9
"""Of the limit on KV memory."""

BOUND = 0.6
"""Of the bandwidth that plain reading reaches: what a whole step may."""

BEHIND = 0.95
"""Of the rate that was asked for."""

GROWN = 2.0
"""Times to a first token in the last third of a run, beside those in the first."""

FEWEST = 12
"""Answers, to say anything of how they change."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One finding: what was measured, and what to try."""

    bottleneck: Bottleneck
    told: str
    fix: str


def advice(run: Run) -> list[Advice]:
    """All that is found, what comes first being what hides the others."""
    found = (_client(run), _queue(run), _memory(run), _time(run))
    return [each for each in found if each is not None]


def _client(run: Run) -> Advice | None:
    behind = late(run)
    if run.load.get("loop") != "open" or behind is None or behind <= LATE_S:
        return None
    return Advice(
        "client",
        f"requests were sent {1000 * behind:.0f} ms later than due (p99)",
        "ask from another machine, or for less: the other figures tell of this one, too",
    )


def _queue(run: Run) -> Advice | None:
    rate = run.load.get("rate")
    good = [each for each in run.good if each.turn == 0 and each.ttft is not None]
    if not rate or len(good) < FEWEST or not run.seconds:
        return None
    answered = len(good) / run.seconds
    third = len(good) // 3
    first, last = (
        float(np.median([each.ttft or 0.0 for each in part]))
        for part in (good[:third], good[-third:])
    )
    if answered >= BEHIND * rate or last < GROWN * first:
        return None
    return Advice(
        "queue",
        f"{rate:g} conversations begin in a second and {answered:.2f} are answered: first tokens"
        f" took {1000 * first:.0f} ms in the first third of the run, {1000 * last:.0f} ms in the"
        " last",
        f"ask for less than {answered:.2f}/s, add servers (kvrt route), or see what else is said",
    )


def _memory(run: Run) -> Advice | None:
    found = memory_of(run)
    if "why" in found or found["pinned_peak"] < FULL * found["limit"]:
        return None
    return Advice(
        "memory",
        f"requests pinned {found['pinned_peak'] / found['limit']:.0%} of the KV memory's limit",
        "a higher --memory-limit, --kv-cache-dtype int8, or shorter prompts",
    )


def _time(run: Run) -> Advice | None:
    """Where requests spend their time."""
    good = [each for each in run.good if each.ttft is not None]
    whole = sum(each.e2e for each in good)
    if not whole:
        return None
    before = sum(each.ttft or 0.0 for each in good) / whole
    tokens = tokens_of(run)
    if before > 0.5:
        prompt = tokens.prompt + tokens.cached
        cached = f", {tokens.cached / prompt:.0%} of them cached" if prompt else ""
        return Advice(
            "prompts",
            f"{before:.0%} of the time passes before first tokens: {tokens.prompt} tokens of"
            f" prompts were computed{cached}",
            "prompts that begin alike (the prefix cache), fewer at once, or a faster device",
        )
    return _reading(run, 1 - before)


def _reading(run: Run, after: float) -> Advice:
    """Most of the time passes between tokens."""
    step = percentile(times_of(run.records, "tpot"), 50)
    weights, limit = (run.target.get(name) for name in ("weight_bytes", "read_bytes_per_s"))
    told = f"{after:.0%} of the time passes between tokens"
    if step and isinstance(weights, int | float) and isinstance(limit, int | float) and limit > 0:
        share = weights / step / limit
        told += (
            f": weights of {weights / 1e6:.0f} MB in {1000 * step:.2f} ms are {share:.0%} of the"
            f" {limit / 1e9:.1f} GB/s that plain reading reaches here"
        )
        if share >= BOUND:
            return Advice(
                "bandwidth", told, "smaller weights (--quantize), speculation, or more at once"
            )
    return Advice(
        "steps", told, "fewer clients for sooner tokens, more threads, or kvrt bench MODEL alone"
    )
