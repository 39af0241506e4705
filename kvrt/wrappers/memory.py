"""Checks of `VirtualMemory`, and the ledger of what is mapped that other checks ask."""

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kvrt.spi import (
    ITEM_BYTES,
    Capability,
    Chunk,
    DType,
    MemoryInfo,
    Span,
    VirtualMemory,
)
from kvrt.wrappers.rules import TORCH_DTYPE, Facts, broken, whole


@dataclass(slots=True)
class Mapping:
    """Which chunk is mapped where in one live span."""

    span: Span
    granularity: int
    chunks: dict[int, Chunk] = field(default_factory=dict)
    mapped: NDArray[np.bool_] = field(init=False)
    _holes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self.mapped = np.zeros(self.span.nbytes // self.granularity, np.bool_)

    def put(self, slot: int, chunk: Chunk) -> None:
        self.chunks[slot] = chunk
        self.mapped[slot] = True
        self._holes = None

    def take(self, slot: int) -> None:
        del self.chunks[slot]
        self.mapped[slot] = False
        self._holes = None

    def covers(self, starts: NDArray[np.int64], nbytes: int) -> NDArray[np.bool_]:
        """For each start, whether ``[start, start + nbytes)`` of the span has no hole.

        The ranges must lie within the span.
        """
        holes = self._holes
        if holes is None:  # holes[i] = number of holes among the first i chunks
            holes = np.concatenate(([0], np.cumsum(~self.mapped, dtype=np.int64)))
            self._holes = holes
        shift = self.granularity.bit_length() - 1  # a division would take twice as long
        first = starts >> shift
        last = (starts + (nbytes - 1) >> shift) + 1
        covered: NDArray[np.bool_] = holes.take(last) == holes.take(first)
        return covered


class CheckedMemory:
    """`VirtualMemory` that refuses calls its rules do not allow. Safe to call from any thread.

    The ledger is changed before the device is called and changed back if it fails, so that two
    threads cannot both be let through to the same place; the device itself is called unlocked.
    """

    def __init__(self, facts: Facts, inner: VirtualMemory) -> None:
        self._facts = facts
        self._inner = inner
        self._granularity = facts.info.granularity
        self._aliasing = Capability.ALIASING in facts.info.capabilities
        self._spans: dict[int, Mapping] = {}
        self._uses: dict[Chunk, int] = {}
        self._lock = threading.Lock()

    def mapping_at(self, address: int) -> Mapping | None:
        """The live span that `address` lies in."""
        for mapping in list(self._spans.values()):
            if mapping.span.base <= address < mapping.span.base + mapping.span.nbytes:
                return mapping
        return None

    def check_mapped(self, argument: str, tensor: torch.Tensor) -> None:
        """If a contiguous `tensor` lies in a span, all of it must be mapped."""
        mapping = self.mapping_at(tensor.data_ptr())
        if mapping is None or not tensor.nbytes:
            return
        start = tensor.data_ptr() - mapping.span.base
        if start + tensor.nbytes > mapping.span.nbytes:
            raise broken(argument, tensor, "reaches beyond the end of its span")
        if not mapping.covers(np.array([start]), tensor.nbytes)[0]:
            raise broken(argument, tensor, f"has a hole at byte {start} of its span or after it")

    def reserve(self, nbytes: int) -> Span:
        self._facts.check_open("memory.reserve")
        if not whole(nbytes) or nbytes <= 0 or nbytes % self._granularity:
            rule = f"must be a positive multiple of the granularity, {self._granularity}"
            raise broken("nbytes", repr(nbytes), rule)
        span = self._inner.reserve(nbytes)
        if not isinstance(span, Span):
            raise self._facts.wrong("reserve()", repr(span), "must be a kvrt.spi.Span")
        with self._lock:
            if span.nbytes != nbytes or span.base <= 0 or span.base % self._granularity:
                rule = f"the device must give {nbytes} bytes, aligned to {self._granularity}"
                raise self._facts.wrong("reserve()", span, rule)
            for other in self._spans.values():
                apart = (
                    span.base + nbytes <= other.span.base
                    or other.span.base + other.span.nbytes <= span.base
                )
                if not apart:
                    raise self._facts.wrong("reserve()", span, f"overlaps the live {other.span}")
            self._spans[span.base] = Mapping(span, self._granularity)
        return span

    def release(self, span: Span) -> None:
        self._facts.check_open("memory.release")
        with self._lock:
            mapping = self._live(span)
            if mapping.chunks:
                at = next(iter(mapping.chunks)) * self._granularity
                rule = f"{len(mapping.chunks)} chunks are still mapped, one at byte {at}"
                raise broken("span", span, f"{rule}; unmap them first")
            del self._spans[span.base]
        try:
            self._inner.release(span)
        except BaseException:
            with self._lock:
                self._spans[span.base] = mapping
            raise

    def create(self) -> Chunk:
        self._facts.check_open("memory.create")
        chunk = self._inner.create()
        if not isinstance(chunk, Chunk):
            raise self._facts.wrong("create()", repr(chunk), "must be a kvrt.spi.Chunk")
        with self._lock:
            if chunk in self._uses:
                raise self._facts.wrong("create()", chunk, "is the handle of a live chunk")
            self._uses[chunk] = 0
        return chunk

    def destroy(self, chunk: Chunk) -> None:
        self._facts.check_open("memory.destroy")
        with self._lock:
            if self._count(chunk):
                raise broken("chunk", chunk, "is still mapped; unmap it first")
            del self._uses[chunk]
        try:
            self._inner.destroy(chunk)
        except BaseException:
            with self._lock:
                self._uses[chunk] = 0
            raise

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        self._facts.check_open("memory.map")
        with self._lock:
            mapping, slot = self._place(span, at)
            if slot in mapping.chunks:
                raise broken("at", at, f"{mapping.chunks[slot]} is mapped there; unmap it first")
            if self._count(chunk) and not self._aliasing:
                raise broken("chunk", chunk, "is mapped elsewhere, and the device has no ALIASING")
            mapping.put(slot, chunk)
            self._uses[chunk] += 1
        try:
            self._inner.map(span, at, chunk)
        except BaseException:
            with self._lock:
                mapping.take(slot)
                self._uses[chunk] -= 1
            raise

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self._facts.check_open("memory.unmap")
        with self._lock:
            mapping, slot = self._place(span, at)
            there = mapping.chunks.get(slot)
            if there is None:
                raise broken("at", at, "nothing is mapped there")
            if there != chunk:
                raise broken("chunk", chunk, f"{there} is mapped at byte {at}")
            mapping.take(slot)
            self._uses[chunk] -= 1
        try:
            self._inner.unmap(span, at, chunk)
        except BaseException:
            with self._lock:
                mapping.put(slot, chunk)
                self._uses[chunk] += 1
            raise

    def tensor(self, span: Span, dtype: DType) -> torch.Tensor:
        self._facts.check_open("memory.tensor")
        if dtype not in ITEM_BYTES:
            raise broken("dtype", repr(dtype), f"must be one of {', '.join(ITEM_BYTES)}")
        with self._lock:
            self._live(span)
        tensor = self._inner.tensor(span, dtype)
        wrong = self._facts.wrong
        if not isinstance(tensor, torch.Tensor):
            raise wrong("tensor()", repr(tensor), "must be a tensor")
        if tensor.device != self._facts.torch_device:
            raise wrong("tensor()", tensor, f"must be on {self._facts.torch_device}")
        if tensor.data_ptr() != span.base or tensor.shape != (span.nbytes // ITEM_BYTES[dtype],):
            raise wrong("tensor()", tensor, f"must be 1-D and cover the whole {span}")
        if tensor.dtype != TORCH_DTYPE[dtype]:
            raise wrong("tensor()", tensor, f"must have the dtype {dtype}")
        return tensor

    def info(self) -> MemoryInfo:
        self._facts.check_open("memory.info")
        info = self._inner.info()
        if not isinstance(info, MemoryInfo):
            raise self._facts.wrong("memory.info()", repr(info), "must be a kvrt.spi.MemoryInfo")
        others = info.others or 0
        if not (0 <= info.free <= info.total and info.chunks >= 0 and others >= 0):
            raise self._facts.wrong(
                "memory.info()", info, "needs 0 <= free <= total, 0 <= chunks and 0 <= others"
            )
        return info

    def _live(self, span: Span) -> Mapping:
        mapping = self._spans.get(span.base) if isinstance(span, Span) else None
        if mapping is None or mapping.span != span:
            raise broken("span", span, "is not a live span of this device")
        return mapping

    def _place(self, span: Span, at: int) -> tuple[Mapping, int]:
        mapping = self._live(span)
        if not whole(at) or at % self._granularity or not 0 <= at < span.nbytes:
            rule = f"must be a multiple of {self._granularity} from 0 and below {span.nbytes}"
            raise broken("at", repr(at), rule)
        return mapping, at // self._granularity

    def _count(self, chunk: Chunk) -> int:
        """At how many places a live chunk is mapped."""
        if not isinstance(chunk, Chunk) or chunk not in self._uses:
            raise broken("chunk", chunk, "is not a live chunk of this device")
        return self._uses[chunk]
