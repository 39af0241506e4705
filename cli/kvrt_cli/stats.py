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
    from kvrt.engine.stats import RuntimeStats
    from kvrt.runtime import Runtime

GIVE_BACK_S = 0.5
"""An idle runtime gives KV memory that no page needs back within this time (promise P4)."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """One or more answered requests.

    Args:
        requests: how many.
        load_s: opening the device and loading the model.
        prompt_tokens: of all requests.
        cached_tokens: of the prompts; not computed, because their pages were there.
        completion_tokens: of all requests.
        prompt_tokens_per_s: of those computed. One request: from when it was scheduled to its first
            token; several: over the whole time, in which prompts and answers overlap.
        generation_tokens_per_s: one request: after its first token; several: over the whole time.
        first_token_s: from submission to the first token; several: the median.
        total_s: from the first submission to the last token.
        peak_rss_bytes: the most memory this process had resident.
        kv_peak_bytes: the most KV memory that was mapped.
        kv_end_bytes: KV memory mapped now, at the end.
        kv_pooled_bytes: KV memory held now without being mapped, for the next request.
        kv_limit_bytes: KV memory that may be mapped.
        kv_cached_bytes: the part of what is mapped that keeps pages for prompts to come.
        fetched_tokens: since the runtime was made; their pages came back from host or disk.
        host_pages: pages in host memory, outside the device's KV memory.
        host_bytes: that they take.
        disk_pages: pages on disk.
        disk_bytes: that they take.
        expert_uses: experts that a layer needed in a step, of those that are brought to memory as
            needed, since the runtime was made.
        expert_reads: those of them that were not there.
        preemptions: how often a request's pages were taken, to be had again later.
        drafted_tokens: guessed in advance, by speculation.
        accepted_tokens: how many of those came true.
    """

    requests: int
    load_s: float
    prompt_tokens: int
    cached_tokens: int
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
    kv_cached_bytes: int
    fetched_tokens: int
    host_pages: int
    host_bytes: int
    disk_pages: int
    disk_bytes: int
    expert_uses: int
    expert_reads: int
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
    cached = sum(result.usage.cached_tokens for result in results)
    completion = sum(result.usage.completion_tokens for result in results)
    first = sorted(r.timings.first_token for r in results if r.token_ids) or [0.0]
    if len(results) == 1:
        timings = results[0].timings
        prompt_s = timings.first_token - timings.queued
        # The first token comes with the prompt; each of the others takes a step.
        timed, generation_s = completion - 1, timings.total - timings.first_token
    else:
        prompt_s, timed, generation_s = seconds, completion, seconds
    settled = _settled(runtime)
    cache, offload, experts = settled.cache, settled.offload, settled.experts
    disks = offload.disks if offload is not None else ()
    return Statistics(
        requests=len(results),
        load_s=settled.load_seconds,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        prompt_tokens_per_s=_rate(prompt - cached if completion else 0, prompt_s),
        generation_tokens_per_s=_rate(timed, generation_s),
        first_token_s=first[len(first) // 2],
        total_s=seconds,
        peak_rss_bytes=peak_rss(),
        kv_peak_bytes=cache.peak_mapped_bytes,
        kv_end_bytes=cache.mapped_bytes,
        kv_pooled_bytes=cache.pooled_bytes,
        kv_limit_bytes=cache.limit_bytes,
        kv_cached_bytes=cache.cached_bytes,
        fetched_tokens=offload.fetched_pages * runtime.config.page_size if offload else 0,
        host_pages=offload.host.pages if offload else 0,
        host_bytes=offload.host.used_bytes if offload else 0,
        disk_pages=sum(disk.pages for disk in disks),
        disk_bytes=sum(disk.used_bytes for disk in disks),
        expert_uses=experts.hits + experts.misses if experts else 0,
        expert_reads=experts.misses if experts else 0,
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
        ("prompt", f"{_prompt(stats)}{total}"),
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
        (
            "KV cached",
            f"{format_bytes(stats.kv_cached_bytes)} of that, for prompts that begin with the same"
            " tokens",
        ),
        ("preemptions", f"{stats.preemptions}"),
    ]
    if stats.host_pages or stats.disk_pages or stats.fetched_tokens:
        tiers = (
            f"{format_bytes(stats.host_bytes)} in host memory,"
            f" {format_bytes(stats.disk_bytes)} on disk; {stats.fetched_tokens} tokens fetched so"
            " far"
        )
        rows.insert(-1, ("KV tiers", tiers))
    if stats.expert_uses:
        there = 1 - stats.expert_reads / stats.expert_uses
        experts = (
            f"{there:.1%} of {stats.expert_uses} were in memory, {stats.expert_reads} were read"
        )
        rows.append(("experts", experts))
    if stats.drafted_tokens:
        drafts = f"{stats.accepted_tokens} of {stats.drafted_tokens} guessed tokens came true"
        rows.append(("speculation", drafts))
    if many:
        rows.insert(0, ("requests", f"{stats.requests} in {stats.total_s:.2f} s"))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def _prompt(stats: Statistics) -> str:
    if not stats.cached_tokens:
        return f"{stats.prompt_tokens} tokens, {_per_s(stats.prompt_tokens_per_s)}"
    computed = stats.prompt_tokens - stats.cached_tokens
    return (
        f"{stats.prompt_tokens} tokens, {stats.cached_tokens} of them cached;"
        f" {computed} computed, {_per_s(stats.prompt_tokens_per_s)}"
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0


def _per_s(rate: float) -> str:
    return f"{rate:.1f} tokens/s" if rate else "too few for a rate"


def _settled(runtime: "Runtime") -> "RuntimeStats":
    """Where the idle runtime stands once it has given back what no page needs."""
    deadline = time.monotonic() + GIVE_BACK_S
    while True:
        stats = runtime.stats()
        cache = stats.cache
        running = cache.used_pages or cache.retired_pages
        if not running and cache.spare_bytes <= runtime.config.keep_warm:
            return stats
        if time.monotonic() > deadline:
            return stats
        time.sleep(0.005)
