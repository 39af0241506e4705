"""What ranks say each other, as the system and their calls show it."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from kvrt_kernels.collective import TorchCollective

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

BYTES_RECEIVED, DATA_SEGMENTS = 128, 152
"""Where ``struct tcp_info`` of Linux has them: u64 and u32."""

FEW, MANY = 8, 40
"""Tokens of two answers. What the longer takes more is for steps of one token each."""


@dataclass(frozen=True, slots=True)
class Said:
    """Of a step.

    Args:
        calls: of collectives that are no plain sending.
        segments: that rank 0 has received by TCP, with something in them.
        received: bytes that it has received by TCP.
    """

    calls: float
    segments: float
    received: float

    def __sub__(self, other: "Said") -> "Said":
        return Said(
            self.calls - other.calls,
            self.segments - other.segments,
            self.received - other.received,
        )


def in_a_step(make: Any, **options: Any) -> Said:
    """What is said in a step that decodes one token.

    Args:
        make: opens a runtime with some options.
    """
    with counting() as calls, make(prefix_cache=False, **options) as runtime:
        counts = []
        for tokens in (FEW, MANY):
            before = _so_far(calls)
            _say(runtime, tokens)
            counts.append(_so_far(calls) - before)
    more = counts[1] - counts[0]
    steps = MANY - FEW
    return Said(more.calls / steps, more.segments / steps, more.received / steps)


@contextmanager
def counting() -> Iterator[list[str]]:
    """The names of the calls that this process makes meanwhile."""
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_reduce"):
            call = getattr(TorchCollective, name)

            def counted(self: TorchCollective, x: Any, call: Any = call, name: str = name) -> Any:
                made.append(name)
                return call(self, x)

            patch.setattr(TorchCollective, name, counted)
        yield made


def _say(runtime: Runtime, tokens: int) -> None:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    assert len(runtime.generate([[5, 6, 7]], params)[0].token_ids) == tokens


def _so_far(calls: list[str]) -> Said:
    segments = received = 0
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            own = socket.socket(fileno=os.dup(number))
        except OSError:  # no socket, or closed since
            continue
        with own:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                received += struct.unpack_from("<Q", info, BYTES_RECEIVED)[0]
                segments += struct.unpack_from("<I", info, DATA_SEGMENTS)[0]
    return Said(len(calls), segments, received)
