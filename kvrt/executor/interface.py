"""What the engine and the KV memory ask of an executor, and the values that they hand it.

    page table, limit, prefix index, batches, offload         values
    ------------------------------------------------------------------------------
    commit    map, unmap, copy: all of the ops, or none       PageMemory, Executor
    copies    pages to host memory, and back                  PageMemory, Executor
    launch    one forward pass                                            Executor

Above the line, one thread plans on values and asks no device. Below it, the same values are given
to several workers where there are such (`kvrt.ranks`), each with a part of the model: ops are
numbers of chunks and pages, a step is arrays. Host memory alone is a tensor, since disks read and
write it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvrt.errors import OutOfMemory
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.ops import Op
from kvrt.spi import DeviceInfo, PageLayout, Ticket

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Applied:
    """Every op was carried out: so many of each kind."""

    maps: int
    unmaps: int
    copies: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The device had no memory left. Nothing was changed: what was done is undone."""

    error: OutOfMemory


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """Copy a page off the device, to host memory: uint8 [host_bytes], contiguous."""

    page: int
    host: "Tensor" = field(repr=False)
    group: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Copy host memory, uint8 [host_bytes] and contiguous, to a page on the device."""

    page: int
    host: "Tensor" = field(repr=False)
    group: int = 0


PageCopy = Save | Fetch


class Step(NamedTuple):
    """One forward pass over several sequences, as int32 arrays.

    Args:
        pages: of each group, [sequences, at least the most pages]: each sequence's row of page
            numbers; what is behind its tokens may be anything. Whoever made the step may change
            them for the next.
        query_start: [sequences + 1]; see `kvrt.spi.AttentionBatch`.
        context_len: [sequences]; the same.
        parents: [tokens], or None; the same.
        tokens: [tokens]; of all sequences, one after the other.
        wanted: [rows]; the tokens whose logits are wanted.
        adapters: [sequences]; the numbers of what is added to the model for them, 0: nothing. None:
            nothing is, to any.
        seen: what stands in place of tokens' own embeddings, for the model.
        turns: how its tokens' positions differ from their places in the text, for the model; None:
            they do not.
        drafting: what drafts computes it, over its own groups.
    """

    pages: tuple[Ints, ...]
    query_start: Ints
    context_len: Ints
    parents: Ints | None
    tokens: Ints
    wanted: Ints
    adapters: Ints | None = None
    seen: Sequence[object] = ()
    turns: object = None
    drafting: bool = False


class Running(NamedTuple):
    """A pass that was launched, and may still run.

    Args:
        logits: float32 [rows, vocab]; reading them waits for them.
        fence: done when the pass is, and all that were launched before.
    """

    logits: "Tensor"
    fence: Ticket


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """Since it was made.

    Args:
        peak_mapped_chunks: the most that were mapped at once, after a commit.
        maps: chunks mapped.
        unmaps: chunks unmapped.
        copies: pages copied because a sequence wrote to a shared one.
    """

    peak_mapped_chunks: int = 0
    maps: int = 0
    unmaps: int = 0
    copies: int = 0


class PageMemory(Protocol):
    """The half that holds pages: all that the KV memory needs, with any model or none.

    Belongs to one thread, the engine's. Others may read `mapped_chunks`, `pooled_chunks` and
    `stats`, and what never changes: `info`, `layouts`, `geometries`, `host_bytes`, `poison`.
    """

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def layouts(self) -> tuple[PageLayout, ...]:
        """Of each group of layers: what is where in a page."""

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """Of each group: how large a page is, and how many there are addresses for."""

    @property
    def host_bytes(self) -> tuple[int, ...]:
        """Of each group: bytes that a page takes in host memory; of several workers, all of
        theirs."""

    @property
    def poison(self) -> bool:
        """For tests: chunks are overwritten with NaN when they are mapped."""

    def commit(self, ops: Sequence[Op]) -> Applied | Failed:
        """Carry all ops out, or none.

        Raises:
            DeviceError: a call failed for another reason than memory; see
                `kvrt.executor.apply.Attempt`.
        """

    def copies(self, moves: Sequence[PageCopy]) -> list[Ticket]:
        """Begin copies of whole pages, each behind the compute submitted before it.

        Until its ticket is done, neither side may be written, nor the page's chunks unmapped.
        """

    def host_buffer(self, nbytes: int) -> "Tensor":
        """uint8 [nbytes] in host memory that pages are copied from and to at full speed.

        Raises:
            OutOfMemory: there is none left.
        """

    def finish(self) -> None:
        """Wait until everything that was launched is done."""

    @property
    def mapped_chunks(self) -> int:
        """Chunks of physical memory that are mapped, in all groups."""

    @property
    def pooled_chunks(self) -> int:
        """Chunks that are held and not mapped: the next ops take these first."""

    def fill(self, chunks: int) -> None:
        """Have at least so many pooled, ahead of need.

        Raises:
            OutOfMemory: there is no memory for as many; those created so far are kept.
        """

    def drain(self, chunks: int = 0) -> None:
        """Give pooled chunks back to the system, until so many are left."""

    def stats(self) -> ExecutorStats: ...

    def check(self, mapped: Sequence[Collection[int]]) -> None:
        """Compare the chunks that should be mapped, of each group, with those that are, and what is
        held with the device's own count.

        Raises:
            IntegrityError: they disagree.
        """

    def close(self) -> None:
        """Give all memory and addresses back. Safe to call twice."""


class Executor(PageMemory, Protocol):
    """Pages, and the model that computes over them."""

    def launch(self, step: Step) -> Running:
        """Submit one forward pass. Its pages were committed before.

        Raises:
            OutOfMemory: there is no memory to compute in.
            DeviceError: the pass failed.
        """
