"""What a tenant tells of its work, for people who look."""

import struct
from dataclasses import astuple, dataclass

_FORM = struct.Struct("<9q")
NBYTES = _FORM.size


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one tenant; those that count do so since it came.

    Args:
        weights: bytes of weights that it holds.
        mapped: bytes of KV memory that it holds.
        cached: bytes of pages that nobody uses now.
        running: sequences.
        waiting: sequences.
        tokens: sampled; of guesses that came true, none.
        prompt: tokens of prompts that began to run.
        reused: how many of these were cached.
        preempted: how often a sequence gave its pages to others.
    """

    weights: int = 0
    mapped: int = 0
    cached: int = 0
    running: int = 0
    waiting: int = 0
    tokens: int = 0
    prompt: int = 0
    reused: int = 0
    preempted: int = 0

    def pack(self) -> bytes:
        return _FORM.pack(*astuple(self))


def unpack(content: bytes) -> Figures:
    return Figures(*_FORM.unpack(content))
