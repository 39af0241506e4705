"""A recording as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format is Chrome's trace events (the document "Trace Event Format"): complete events (``X``),
counters (``C``) and metadata (``M``), with times in microseconds since the recording began. The
engine is process 1, with a track of its thread; each request is a thread of process 2.
"""

from collections.abc import Iterator
from typing import Any

import kvrt
from kvrt.profiling.recorder import Recording, Standing
from kvrt.profiling.tracks import Track, tracks

ENGINE, REQUESTS = 1, 2
"""What are processes there."""

Json = dict[str, Any]


def chrome(recording: Recording) -> Json:
    """All of it, as one JSON object."""
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "title": recording.title,
            "version": f"kvrt {kvrt.__version__}",
            "lost": recording.lost,
        },
        "traceEvents": [
            *_names(recording.title),
            *_steps(recording),
            *_standings(recording),
            *_requests(recording),
        ],
    }


def _names(title: str) -> Iterator[Json]:
    yield _meta(ENGINE, 0, "process_name", name=title)
    yield _meta(ENGINE, 0, "process_sort_index", sort_index=ENGINE)
    yield _meta(ENGINE, 1, "thread_name", name="engine")
    yield _meta(REQUESTS, 0, "process_name", name="requests")
    yield _meta(REQUESTS, 0, "process_sort_index", sort_index=REQUESTS)


def _steps(recording: Recording) -> Iterator[Json]:
    for step in recording.steps:
        spans = sorted(step.spans, key=lambda span: (span.began, span.depth))
        args = {
            "number": step.number,
            "prompt_tokens": step.prompt_tokens,
            "answer_tokens": step.answer_tokens,
            "context_tokens": step.context_tokens,
            "running": step.running,
            "waiting": step.waiting,
        }
        whole = spans[0].began, max(span.ended for span in spans)
        yield _slice(recording, ENGINE, 1, "step", *whole, args)
        for span in spans:
            yield _slice(recording, ENGINE, 1, span.name, span.began, span.ended, {})


def _standings(recording: Recording) -> Iterator[Json]:
    for standing in recording.standings:
        for name, values in _counters(standing):
            at = _us(standing.at - recording.began)
            yield {"ph": "C", "pid": ENGINE, "tid": 0, "ts": at, "name": name, "args": values}


def _counters(standing: Standing) -> Iterator[tuple[str, dict[str, int]]]:
    yield (
        "KV pages",
        {
            "pinned": standing.pinned_pages,
            "held": standing.held_pages,
            "cached": standing.cached_pages,
        },
    )
    yield "KV bytes", {"mapped": standing.mapped_bytes, "pooled": standing.pooled_bytes}
    yield "sequences", {"running": standing.running, "waiting": standing.waiting}


def _requests(recording: Recording) -> Iterator[Json]:
    for number, track in enumerate(tracks(recording), start=1):
        yield _meta(REQUESTS, number, "thread_name", name=track.request_id)
        yield _meta(REQUESTS, number, "thread_sort_index", sort_index=number)
        for segment in track.segments:
            last = segment is track.segments[-1]
            args = _end(track) if last else {}
            yield _slice(recording, REQUESTS, number, *segment, args)


def _end(track: Track) -> Json:
    if track.end is None:
        return {"ended": "not yet"}
    usage = track.end.usage
    return {
        "ended": track.end.how,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "preemptions": usage.preemptions,
    }


def _slice(
    recording: Recording, pid: int, tid: int, name: str, began: float, ended: float, args: Json
) -> Json:
    at = _us(began - recording.began)
    # Both ends are rounded, and not the duration: what touches still does.
    length = round(_us(ended - recording.began) - at, 3)
    return {
        "ph": "X", "pid": pid, "tid": tid, "ts": at, "dur": length, "name": name, "args": args,
    }  # fmt: skip


def _meta(pid: int, tid: int, what: str, /, **args: Any) -> Json:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": what, "args": args}


def _us(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 3)
