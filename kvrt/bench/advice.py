"""What holds a run back, by what was measured, and what to try.

    client      requests were sent late: the one who asks
    queue       more is asked than is answered, so that each request waits longer than the last; or
                the server itself says that requests wait in it for most of their time
    memory      requests pin almost all KV memory that there may be
    network     much of the time to first tokens passes where the server knows nothing of it
    arithmetic  products run near to the device's peak
    bandwidth   reading the weights once a step takes almost as long as the steps do
    prompts     most of the time passes before first tokens, and it is not known to be arithmetic
    steps       most of the time passes between tokens, and it is not known to be bandwidth

A finding is a number beside a limit, and no more: what is not measured is not named. What bounds an
engine from within is `kvrt.profiling.bottleneck`'s to say; the words, what to do, and when
something is near to a limit are the same.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvrt.bench.figures import (
    LATE_S,
    first_token_of,
    late,
    memory_of,
    percentile,
    times_of,
    tokens_of,
)
from kvrt.bench.words import Run
from kvrt.profiling.bottleneck import FIXES, NEAR, part

Bottleneck = Literal[
    "client", "queue", "memory", "network", "arithmetic", "bandwidth", "prompts", "steps"
]

FULL = 0.9
"""Of the limit on KV memory."""

BOUND = 0.6
"""Of the bandwidth that plain reading reaches: what a whole step may."""

BEHIND = 0.95
"""Of the rate that was asked for."""

GROWN = 2.0
"""Times to a first token in the last third of a run, beside those in the first."""

WAITS = 0.5
"""Of a request's time: what it may wait in a queue."""

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
    found = (_client(run), _queue(run), _memory(run), _network(run), _time(run))
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
    return _behind(run) or _waiting(run)


def _behind(run: Run) -> Advice | None:
    """More is asked than is answered."""
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


def _waiting(run: Run) -> Advice | None:
    """The server says that requests wait in it."""
    parts = first_token_of(run)
    good = [each.e2e for each in run.good]
    if "why" in parts or not good:
        return None
    share = parts["queued"] / (sum(good) / len(good))
    if share < WAITS:
        return None
    return Advice(
        "queue",
        f"requests wait for {1000 * parts['queued']:.0f} ms in the server on average before"
        f" anything is computed for them: {share:.0%} of their time",
        FIXES["queue"],
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


def _network(run: Run) -> Advice | None:
    """What passes between who asks and who is asked."""
    firsts = times_of(run.records, "ttft")
    if not len(firsts):
        return None
    parts, away = first_token_of(run), run.target.get("round_trip_s")
    far = f"; a round trip takes {1000 * away:.2f} ms" if isinstance(away, float) else ""
    if "why" not in parts:
        whole = sum(parts.values())
        if parts["between"] < NEAR * whole:
            return None
        told = (
            f"of {1000 * whole:.2f} ms to a first token, on average, the server knows of"
            f" {1000 * (whole - parts['between']):.2f}: the other"
            f" {parts['between'] / whole:.0%} pass on the way, in HTTP, and in reading what was"
            f" asked{far}"
        )
        return Advice("network", told, FIXES["network"])
    median = percentile(firsts, 50) or 0.0
    if not isinstance(away, float) or away < NEAR * median:
        return None
    told = f"first tokens take {1000 * median:.2f} ms (median){far}: {away / median:.0%} of it"
    return Advice("network", told, FIXES["network"])


def _time(run: Run) -> Advice | None:
    """Where requests spend their time."""
    good = [each for each in run.good if each.ttft is not None]
    whole = sum(each.e2e for each in good)
    if not whole:
        return None
    before = sum(each.ttft or 0.0 for each in good) / whole
    if before > 0.5:
        return _arithmetic(run) or _prompts(run, before)
    reading = _reading(run, 1 - before)
    return reading if reading.bottleneck == "bandwidth" else _arithmetic(run) or reading


def _arithmetic(run: Run) -> Advice | None:
    """Of the device's peak, at the least: attention, and what it does not do, come on top."""
    names = ("prompt_token_operations", "answer_token_operations", "operations_per_s")
    prompt, answer, peak = (run.target.get(name) for name in names)
    if not isinstance(prompt, int | float) or not isinstance(answer, int | float):
        return None
    tokens = tokens_of(run)
    done = tokens.prompt * prompt + tokens.output * answer
    share = part(done, run.seconds, peak if isinstance(peak, int | float) else None)
    if share is None or share < NEAR:
        return None
    told = (
        f"{tokens.prompt} tokens of prompts and {tokens.output} of answers were computed at"
        f" {share:.0%} of the {(peak or 0) / 1e9:.0f} GFLOP/s that products reach here, over the"
        " whole run"
    )
    return Advice("arithmetic", told, FIXES["arithmetic"])


def _prompts(run: Run, before: float) -> Advice:
    """Most of the time passes before first tokens."""
    tokens = tokens_of(run)
    prompt = tokens.prompt + tokens.cached
    cached = f", {tokens.cached / prompt:.0%} of them cached" if prompt else ""
    return Advice(
        "prompts",
        f"{before:.0%} of the time passes before first tokens: {tokens.prompt} tokens of prompts"
        f" were computed{cached}",
        "prompts that begin alike (the prefix cache), fewer at once, or a faster device",
    )


def _reading(run: Run, after: float) -> Advice:
    """Most of the time passes between tokens."""
    step = percentile(times_of(run.records, "tpot"), 50)
    weights, limit = (run.target.get(name) for name in ("weight_bytes", "read_bytes_per_s"))
    told = f"{after:.0%} of the time passes between tokens"
    if step and isinstance(weights, int | float) and isinstance(limit, int | float):
        share = part(weights, step, limit)
        if share is not None:
            told += (
                f": weights of {weights / 1e6:.0f} MB in {1000 * step:.2f} ms are {share:.0%} of"
                f" the {limit / 1e9:.1f} GB/s that plain reading reaches here"
            )
            if share >= BOUND:
                return Advice("bandwidth", told, FIXES["bandwidth"])
    return Advice(
        "steps", told, "fewer clients for sooner tokens, more threads, or kvrt bench MODEL alone"
    )
