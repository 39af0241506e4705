"""Faults of virtual memory."""

import torch

from kvrt.errors import OutOfMemory
from kvrt.spi import Chunk, Span
from kvrt.wrappers.wrapper import WrappedMemory


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
