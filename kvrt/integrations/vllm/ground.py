"""Which chunks lie under which blocks, and the memory under those that may be used."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.arena import Arena
from kvrt.registry import AUTO


class Run(NamedTuple):
    """Where a part of each block is, in bytes: block b's is at ``start + b * step``.

    Args:
        start: of block 0's.
        step: from one block's to the next one's.
        nbytes: of one.
    """

    start: int
    step: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How blocks lie in the KV tensor: in one run, if a block's layers lie together; else a run for
    each layer."""

    runs: tuple[Run, ...]
    chunk_bytes: int

    @property
    def block_bytes(self) -> int:
        """Of all parts of one."""
        return sum(run.nbytes for run in self.runs)

    def chunks_of(self, block: int) -> set[int]:
        """The chunks that must be mapped for a block to be used."""
        found: set[int] = set()
        for start, step, nbytes in self.runs:
            at = start + block * step
            found.update(range(at // self.chunk_bytes, -(-(at + nbytes) // self.chunk_bytes)))
        return found

    def chunks_for(self, blocks: Iterable[int]) -> int:
        """How many chunks some blocks need together."""
        return len(set[int]().union(*map(self.chunks_of, blocks)))


@dataclass(slots=True)
class Ground:
    """The blocks that have memory, and so the chunks that do."""

    layout: Layout
    users: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Chunks."""
        return len(self.users)

    def take(self, block: int) -> set[int]:
        """A block is to have memory. Returns the chunks that had none."""
        chunks = self.layout.chunks_of(block)
        new = {chunk for chunk in chunks if chunk not in self.users}
        self.users.update(chunks)
        return new

    def give(self, block: int) -> set[int]:
        """A block needs none. Returns the chunks that nobody needs now."""
        chunks = self.layout.chunks_of(block)
        self.users.subtract(chunks)
        gone = {chunk for chunk in chunks if not self.users[chunk]}
        for chunk in gone:
            del self.users[chunk]
        return gone


class BlockMemory:
    """The KV tensor, and memory under the blocks that may be used. Belongs to the worker.

    Args:
        nbytes: of the tensor.
        device: it is on.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        backend = "cpu" if device.type == "cpu" else AUTO
        self._arena = Arena(nbytes, backend=backend, device=device.index or 0, name="vllm")
        self.tensor = self._arena.tensor(torch.int8)[:nbytes]
        """int8 [nbytes]."""
        self.device_info = self._arena.device_info
        self.layout: Layout
        """Once it is known, where blocks lie."""
        self._ground: Ground
        self._on_host = device.type == "cpu"

    def lay(self, layers: Sequence[Tensor], block_bytes: int) -> Layout:
        """The layers' views of the tensor are these, [blocks, ...]; block 0 has memory from now on.

        Args:
            block_bytes: of all layers together.
        """
        runs: list[Run] = []
        for layer in layers:
            item, block = layer.element_size(), layer[0]
            last = sum((n - 1) * s for n, s in zip(block.shape, block.stride(), strict=True))
            start = layer.data_ptr() - self.tensor.data_ptr()
            runs.append(Run(start, layer.stride(0) * item, (last + 1) * item))
        if all(run.step == block_bytes for run in runs):
            runs = [Run(0, block_bytes, block_bytes)]
        self.layout = Layout(tuple(dict.fromkeys(runs)), self._arena.chunk_bytes)
        self._ground = Ground(self.layout)
        self.change([], [0], None)
        return self.layout

    def change(
        self, gone: Iterable[int], new: Iterable[int], after: Callable[[], bool] | None
    ) -> None:
        """Take memory from under some blocks, and put it under others.

        Args:
            after: says whether work is done that may still use the former; None: there is none.

        Raises:
            OutOfMemory: the device has no more.
        """
        less = set[int]().union(*map(self._ground.give, gone))
        more = set[int]().union(*map(self._ground.take, new))
        if less - more:
            self._arena.unmap(sorted(less - more), after)
        if more - less:
            self._arena.map(sorted(more - less))
        if not self._on_host:  # there, memory is zero that comes from the system
            size = self._arena.chunk_bytes
            for chunk in more - less:
                self.tensor[chunk * size : (chunk + 1) * size].zero_()

    @property
    def held(self) -> int:
        """Chunks that it has, those included that wait for work to end."""
        self._arena.poll()
        return self._arena.stats().held_bytes // self._arena.chunk_bytes

    @property
    def maps(self) -> int:
        """Chunks that it was given so far."""
        return self._arena.stats().maps

    def close(self) -> None:
        self._arena.close()
