"""What a run cost: the statistics block of ``--verbose``, and the same as JSON."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvrt.outputs import Result
from kvrt.units import format_bytes

if TYPE_CHECKING:
    from kvrt.cache import CacheStats
    from kvrt.runtime import Runtime

GIVE_BACK_S = 0.5
"""An idle runtime gives KV memory back within this time (promise P4)."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """One or more answered requests.

    Args:
        requests: how many.
        load_s: opening the device and loading the model.
        prompt_tokens: of all requests.
        completion_tokens: of all requests.
        prompt_tokens_per_s: one request: from when it was scheduled to its first token; several:
            over the whole time, in which prompts and answers overlap.
        generation_tokens_per_s: one request: after its first token; several: over the whole time.
        first_token_s: from submission to the first token; several: the median.
        total_s: from the first submission to the last token.
        peak_rss_bytes: the most memory this process had resident.
        kv_peak_bytes: the most KV memory that was mapped.
        kv_end_bytes: KV memory mapped now, at the end.
        kv_pooled_bytes: KV memory held now without being mapped, for the next request.
        kv_limit_bytes: KV memory that may be mapped.
        preemptions: how often a request's pages were taken and recomputed.
        drafted_tokens: guessed in advance, by speculation.
        accepted_tokens: how many of those came true.
    """

    requests: int
    load_s: float
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_per_s: float
    generation_tokens_per_s: float
    first_token_s: float
    total_s: float
    peak_rss_bytes: int
    kv_peak_bytes: int
    kv_end_bytes: int
    kv_pooled_bytes: int
    kv_limit_bytes: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int

    def as_json(self) -> dict[str, Any]:
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def collect(runtime: "Runtime", results: Sequence[Result], seconds: float) -> Statistics:
    """The statistics of requests that `runtime` answered in `seconds`, all together."""
    prompt = sum(result.usage.prompt_tokens for result in results)
    completion = sum(result.usage.completion_tokens for result in results)
    first = sorted(r.timings.first_token for r in results if r.token_ids) or [0.0]
    if len(results) == 1:
        timings = results[0].timings
        prompt_s = timings.first_token - timings.queued
        # The first token comes with the prompt; each of the others takes a step.
        timed, generation_s = completion - 1, timings.total - timings.first_token
    else:
        prompt_s, timed, generation_s = seconds, completion, seconds
    cache = _settled(runtime)
    return Statistics(
        requests=len(results),
        load_s=runtime.stats().load_seconds,
        prompt_tokens=prompt,
        completion_tokens=completion,
        prompt_tokens_per_s=_rate(prompt if completion else 0, prompt_s),
        generation_tokens_per_s=_rate(timed, generation_s),
        first_token_s=first[len(first) // 2],
        total_s=seconds,
        peak_rss_bytes=peak_rss(),
        kv_peak_bytes=cache.peak_mapped_bytes,
        kv_end_bytes=cache.mapped_bytes,
        kv_pooled_bytes=cache.pooled_bytes,
        kv_limit_bytes=cache.limit_bytes,
        preemptions=sum(result.usage.preemptions for result in results),
        drafted_tokens=sum(result.usage.drafted_tokens for result in results),
        accepted_tokens=sum(result.usage.accepted_tokens for result in results),
    )


def peak_rss() -> int:
    """The most memory this process ever had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def block(stats: Statistics) -> str:
    """The statistics as lines for people."""
    many = stats.requests > 1
    total = " over all requests" if many else ""
    rows = [
        ("load", f"{stats.load_s:.2f} s"),
        ("prompt", f"{stats.prompt_tokens} tokens, {_per_s(stats.prompt_tokens_per_s)}{total}"),
        ("time to first token", f"{stats.first_token_s * 1e3:.1f} ms{' (median)' if many else ''}"),
        (
            "generation",
            f"{stats.completion_tokens} tokens, {_per_s(stats.generation_tokens_per_s)}{total}",
        ),
        ("peak memory", f"{format_bytes(stats.peak_rss_bytes)} resident"),
        (
            "KV mapped",
            f"{format_bytes(stats.kv_peak_bytes)} at the peak, {format_bytes(stats.kv_end_bytes)}"
            f" at the end (and {format_bytes(stats.kv_pooled_bytes)} pooled),"
            f" {format_bytes(stats.kv_limit_bytes)} allowed",
        ),
        ("preemptions", f"{stats.preemptions}"),
    ]
    if stats.drafted_tokens:
        drafts = f"{stats.accepted_tokens} of {stats.drafted_tokens} guessed tokens came true"
        rows.append(("speculation", drafts))
    if many:
        rows.insert(0, ("requests", f"{stats.requests} in {stats.total_s:.2f} s"))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0


def _per_s(rate: float) -> str:
    return f"{rate:.1f} tokens/s" if rate else "too few for a rate"


def _settled(runtime: "Runtime") -> "CacheStats":
    """The cache's statistics once the idle runtime has given back what it does not keep warm."""
    deadline = time.monotonic() + GIVE_BACK_S
    while True:
        cache = runtime.stats().cache
        held = cache.mapped_bytes + cache.pooled_bytes
        if held <= runtime.config.keep_warm or time.monotonic() > deadline:
            return cache
        time.sleep(0.005)
