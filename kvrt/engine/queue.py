"""Who waits, and why."""

import time
from dataclasses import dataclass
from typing import Any, Literal

from kvrt.engine.live import Live
from kvrt.sched.plan import Held

Why = Held | Literal["beginning", "pages", "asleep", "turn"]
"""Why a request waits:

tokens     the next steps have tokens enough of others (``max_batch_tokens``)
places     no more may run at once (``max_running``)
memory     no pages are left
alone      one runs alone that did not fit beside others, or it is one
beginning  another just computes what it begins with, too
pages      its pages are on their way from host memory or disk
asleep     the runtime does
turn       it has just come
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that waits, or a sequence of one.

    Args:
        request_id: as its result has it.
        metadata: what its caller gave with it.
        priority: smaller is served first, under the priority policy.
        prompt_tokens, generated_tokens: that it has.
        seconds: since it was submitted.
        preemptions: how often its pages were taken.
    """

    request_id: str
    metadata: Any
    priority: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    preemptions: int
    why: Why


def queue_of(
    live: Live, step: int, held: Held | None, awaiting: frozenset[int], most: int, *, parked: bool
) -> tuple[Queued, ...]:
    """The first of those that wait: for pages, then for their turn, in its order. Reads what the
    engine's thread may just change: one may be missing that comes or goes meanwhile.

    Args:
        held: why the last plan admitted no more.
        awaiting: ids of sequences that it passed over.
        most: as many, at most.
        parked: no steps are taken.
    """
    now, found = time.perf_counter(), list[Queued]()
    for seq in [*list(live.fetching), *live.waiting.first(most, step)][:most]:
        request = live.find(seq.id)
        if request is None:
            continue
        why: Why = "turn" if held is None else held
        if parked:
            why = "asleep"
        elif seq in live.fetching:
            why = "pages"
        elif seq.id in awaiting:
            why = "beginning"
        found.append(
            Queued(
                request.id, request.metadata, seq.priority, seq.prompt_len, seq.generated,
                now - request.submitted, seq.preemptions, why,
            )
        )  # fmt: skip
    return tuple(found)
