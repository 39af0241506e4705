"""What a server knows of its own times: how long requests waited in it, and until first tokens.

    sent           received      started              first token said      first piece
      |-- between --|--- queued ---|----- computing -----|----- between -----|
      |------------------- TTFT, as who asks has measured it ----------------|

Servers tell sums over all requests (`/metrics`, as histograms); two of these, from before and after
a run, are of the run if nobody else asked meanwhile.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

FIRST = ("kvrt_time_to_first_token_seconds", "vllm:time_to_first_token_seconds")
QUEUED = ("kvrt_queue_seconds", "vllm:request_queue_time_seconds")
SAMPLE = re.compile(
    rf"^({'|'.join((*FIRST, *QUEUED))})_(sum|count)(?:\{{.*\}})? (\S+)", re.MULTILINE
)
"""A line of Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Sums since a server began.

    Args:
        firsts: how many first tokens there were.
        first: seconds from a request's submission to its first token, of all together.
        queued: of these, until its first step.
    """

    firsts: int = 0
    first: float = 0.0
    queued: float = 0.0


def read_clocks(text: str) -> Clocks | None:
    """Out of what `/metrics` says, as kvrt and vLLM call it; None: it does not say."""
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for name, kind, value in SAMPLE.findall(text):
        sums["first" if name in FIRST else "queued", kind] += float(value)
    if ("first", "count") not in sums or ("queued", "sum") not in sums:
        return None
    return Clocks(int(sums["first", "count"]), sums["first", "sum"], sums["queued", "sum"])


def of_run(before: Clocks, after: Clocks, asked: int) -> dict[str, Any]:
    """Of a run, as its file has it: means in seconds, or why they are not known.

    Args:
        asked: requests of the run that had a first token.
    """
    count = after.firsts - before.firsts
    if count != asked or not asked:
        return {"why": f"{asked} requests of this run had a first token, and {count} of the server"}
    return {
        "first_mean": (after.first - before.first) / count,
        "queued_mean": (after.queued - before.queued) / count,
    }
