"""A recording as plain numbers: what is printed of it, and what a server sends."""

from dataclasses import asdict
from typing import Any

from kvrt.profiling.bottleneck import bottleneck
from kvrt.profiling.recorder import Ended, Recording
from kvrt.profiling.totals import Limits, Work, measured, totals


def told(recording: Recording, work: Work, limits: Limits, kv_limit: int) -> dict[str, Any]:
    """Seconds of each phase, tokens, and the bottleneck of the throughput; None where nothing was
    computed.

    Args:
        kv_limit: bytes that KV memory may take.
    """
    found = totals(recording.steps)
    finding = None
    if found.seconds:
        finding = bottleneck(measured(recording, work, limits, kv_limit), "throughput")
    return {
        "title": recording.title,
        "lost": recording.lost,
        "requests": sum(isinstance(what, Ended) for _, what in recording.happened),
        "steps": found.steps,
        "seconds": found.seconds,
        "computing_seconds": found.computing,
        "prompt_tokens": found.prompt_tokens,
        "answer_tokens": found.answer_tokens,
        "phases": [
            {"name": each.name, "count": each.count, "seconds": each.seconds}
            for each in found.phases
        ],
        "bottleneck": None if finding is None else asdict(finding),
    }
