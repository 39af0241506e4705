"""The life of each request, out of what became of it: queued, prefill, decode, preempted, fetched.

    submitted   started             first token      preempted    resumed      ended
        | queued | prefill              | decode          | preempted | decode   |

Where it ended, its own times say when it was submitted, started, and said its first token: they
are more exact than when the recorder heard of it. After it was preempted, what it computes again is
part of what it had come to.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kvrt.engine.events import (
    RequestFetched,
    RequestFetching,
    RequestPreempted,
    RequestQueued,
    RequestResumed,
    RequestStarted,
)
from kvrt.profiling.recorder import Ended, Happened, Recording

State = Literal["queued", "prefill", "decode", "preempted", "fetched"]


class Segment(NamedTuple):
    """A request was in a state, from `began` to `ended`."""

    state: State
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Track:
    """A request.

    Args:
        segments: one after the other, without gaps.
        end: what it came to; None: it had not ended.
    """

    request_id: str
    segments: tuple[Segment, ...]
    end: Ended | None


def tracks(recording: Recording) -> list[Track]:
    """Of every request that something happened to, in the order of the first time it did. An id
    that came again after its request had ended is another request."""
    lives: list[tuple[str, list[tuple[float, Happened]]]] = []
    current: dict[str, list[tuple[float, Happened]]] = {}
    for at, what in recording.happened:
        life = current.get(what.request_id)
        if life is None:
            life = current[what.request_id] = []
            lives.append((what.request_id, life))
        life.append((at, what))
        if isinstance(what, Ended):
            del current[what.request_id]
    return [_track(name, life, recording) for name, life in lives]


def _track(name: str, life: list[tuple[float, Happened]], recording: Recording) -> Track:
    last_at, last = life[-1]
    end = last if isinstance(last, Ended) else None
    began = life[0][0] if isinstance(life[0][1], RequestQueued) else recording.began
    started = first = None
    if end is not None:
        submitted = last_at - end.timings.total
        began = max(submitted, recording.began)
        started = submitted + end.timings.queued
        if end.usage.completion_tokens:
            first = submitted + end.timings.first_token
    changes: list[tuple[float, State]] = [(began, "queued")]
    known = isinstance(life[0][1], RequestQueued | Ended)
    if not known or (started is not None and not any(_starts(what) for _, what in life)):
        at = began if started is None else started
        changes.append((at, "prefill"))
    apart = 0
    for at, what in life:
        match what:
            case RequestStarted():
                changes.append((at if started is None else started, "prefill"))
            case RequestPreempted():
                apart += 1
                changes.append((at, "preempted"))
            case RequestResumed():
                apart = max(0, apart - 1)
                if not apart:
                    changes.append((at, "prefill"))
            case RequestFetching():
                changes.append((at, "fetched"))
            case RequestFetched():
                changes.append((at, "prefill"))
    ended = last_at if end is not None else recording.ended
    return Track(name, tuple(_segments(changes, first, ended)), end)


def _starts(what: Happened) -> bool:
    return isinstance(what, RequestStarted)


def _segments(
    changes: list[tuple[float, State]], first: float | None, ended: float
) -> list[Segment]:
    """In order, each until the next one; from the first token on, what runs says the answer."""
    found: list[Segment] = []
    at, state = changes[0]
    for then, following in [*changes[1:], (ended, "queued")]:
        then = max(then, at)
        if state == "prefill" and first is not None:
            border = min(max(at, first), then)
            found += [Segment("prefill", at, border), Segment("decode", border, then)]
        else:
            found.append(Segment(state, at, then))
        at, state = then, following
    return [segment for segment in found if segment.ended > segment.began]
