"""Faults of virtual memory."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.errors import OutOfMemory
from kvrt.spi import Chunk, DType, MemoryInfo, Span
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedMemory


class KeepsDestroyedChunks(WrappedMemory):
    def destroy(self, chunk: Chunk) -> None:
        pass


class ForgetsToUnmap(WrappedMemory):
    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        pass


class MapsOneChunkTooFar(WrappedMemory):
    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        super().map(span, self._too_far(span, at), chunk)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        super().unmap(span, self._too_far(span, at), chunk)

    def _too_far(self, span: Span, at: int) -> int:
        return (at + self.device.info.granularity) % span.nbytes


class MapsZeroes(WrappedMemory):
    """A chunk that is mapped again has lost its bytes."""

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        super().map(span, at, chunk)
        granularity = self.device.info.granularity
        self.tensor(span, "float32").view(torch.uint8)[at : at + granularity].zero_()


class ReservesMemory(WrappedMemory):
    """Takes a chunk for every span, so that the first map is quick."""

    def reserve(self, nbytes: int) -> Span:
        self.create()
        return super().reserve(nbytes)


class LosesTheLastChunks(WrappedMemory):
    """Notices that memory runs out after it has taken the chunk."""

    def create(self) -> Chunk:
        chunk = super().create()
        if self.info().free < 16 * self.device.info.granularity:
            raise OutOfMemory("no chunk left")
        return chunk


class ElsewhereInWideSpans(WrappedMemory):
    """Maps at `place`, if the span has more than 4 GiB."""

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        super().map(span, self._place(span, at), chunk)

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        super().unmap(span, self._place(span, at), chunk)

    def _place(self, span: Span, at: int) -> int:
        return self.place(span, at) if span.nbytes > 2**32 else at

    def place(self, span: Span, at: int) -> int:
        raise NotImplementedError


class MapsWideSpansBackwards(ElsewhereInWideSpans):
    def place(self, span: Span, at: int) -> int:
        return span.nbytes - self.device.info.granularity - at


class CutsOffsets(ElsewhereInWideSpans):
    """Keeps 32 bits of them."""

    def place(self, span: Span, at: int) -> int:
        return at % 2**32


class RemembersTensors(WrappedMemory):
    """By their address and dtype, though another span may be there now."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._known: dict[tuple[int, DType], Tensor] = {}

    def tensor(self, span: Span, dtype: DType) -> Tensor:
        key = span.base, dtype
        if key not in self._known:
            self._known[key] = super().tensor(span, dtype)
        return self._known[key]


class KeepsOneChunkInAThousand(WrappedMemory):
    """And does not count it."""

    kept = 0
    destroyed = 0

    def destroy(self, chunk: Chunk) -> None:
        self.destroyed += 1
        if self.destroyed % 1000:
            super().destroy(chunk)
        else:
            self.kept += 1

    def info(self) -> MemoryInfo:
        info = super().info()
        return replace(info, chunks=info.chunks - self.kept * self.device.info.granularity)


class IsAlwaysFree(WrappedMemory):
    def info(self) -> MemoryInfo:
        info = super().info()
        return replace(info, free=info.total)


MUTANTS = {
    "keeps_destroyed_chunks": Mutant("memory", memory=KeepsDestroyedChunks),
    "forgets_to_unmap": Mutant("memory", memory=ForgetsToUnmap),
    "maps_one_chunk_too_far": Mutant("memory", memory=MapsOneChunkTooFar),
    "maps_zeroes": Mutant("memory", memory=MapsZeroes),
    "reserves_memory": Mutant("memory", memory=ReservesMemory),
    "maps_wide_spans_backwards": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", memory=MapsWideSpansBackwards
    ),
    "cuts_offsets": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", memory=CutsOffsets
    ),
    "remembers_tensors": Mutant(
        "memory::test_a_tensor_covers_its_span_also_where_another_one_was", memory=RemembersTensors
    ),
    "keeps_one_chunk_in_a_thousand": Mutant(
        "memory::test_no_chunk_of_a_thousand_is_kept", memory=KeepsOneChunkInAThousand
    ),
    "is_always_free": Mutant(
        "memory::test_free_memory_falls_by_what_is_taken_and_rises_again", memory=IsAlwaysFree
    ),
    "loses_the_last_chunks": Mutant("errors", memory=LosesTheLastChunks),
}
