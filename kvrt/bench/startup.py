"""What passes from a command to a server's first token, in parts, and what a snapshot is worth.

    started   interpreter  modules  device   files   weights  memory   listens  first token
       |-----------|----------|--------|--------|--------|--------|--------|---------|

Each part ends with what it is called by. Times are those of the machine's clock (`time.time`),
which a process and the one that it has started share.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = {
    "interpreter": "the process is made, and Python begins",
    "modules": "kvrt, torch and the server are imported",
    "device": "the device is opened",
    "files": "the model's configuration, tokenizer and headers are read",
    "weights": "its weights are read, and quantised if they are to be",
    "memory": "KV memory is made, and kept pages are found",
    "server": "it listens",
    "first token": "the first request is computed up to its first token",
}
"""In their order, and what happens in each."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Args:
        seconds: of each part.
        processor: seconds of processors, of the whole process up to the end of the answer.
        prompt_tokens, cached_tokens: of the first request.
        text: its answer.
    """

    seconds: Mapping[str, float]
    processor: float
    prompt_tokens: int
    cached_tokens: int
    text: str

    @property
    def whole(self) -> float:
        """Seconds to the first token."""
        return sum(self.seconds.values())


def parts_of(began: float, marks: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part.

    Args:
        began: when the process was started.
        marks: when each part had ended; a part without one took no time of its own.
    """
    found, at = {}, began
    for name in PARTS:
        ended = max(at, marks.get(name, at))
        found[name] = ended - at
        at = ended
    return found


def medians(starts: Sequence[Start]) -> dict[str, Any]:
    """Of several starts; the whole is the median of wholes, and no sum."""
    return {
        "seconds": {
            name: statistics.median(each.seconds[name] for each in starts) for name in PARTS
        },
        "whole": statistics.median(each.whole for each in starts),
        "processor": statistics.median(each.processor for each in starts),
        "prompt_tokens": starts[0].prompt_tokens,
        "cached_tokens": min(each.cached_tokens for each in starts),
    }
