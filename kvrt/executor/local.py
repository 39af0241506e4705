"""The executor of one device in this process."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from kvrt.errors import IntegrityError
from kvrt.executor.apply import Attempt
from kvrt.executor.backing import Backing, geometry_of
from kvrt.executor.headroom import Headroom
from kvrt.executor.interface import (
    Applied,
    ExecutorStats,
    Failed,
    PageCopy,
    Running,
    Save,
    Step,
)
from kvrt.executor.pool import ChunkPool
from kvrt.kv.pages.ops import Op
from kvrt.sharing.tenant import Tenant
from kvrt.spi import AttentionBatch, Device, PageLayout, StateBatch, StateLayout, StepBatch, Ticket
from kvrt.wrappers.named import blaming, owner_of

Forward = Callable[..., Tensor]
"""One step of a model; see `kvrt.model.decoder.decoder.Decoder.forward`."""


class LocalPages:
    """The pages of one device: a `kvrt.executor.interface.PageMemory`.

    Args:
        device: opened by the caller, who closes it after this.
        layouts: of each group of layers: what is where in a page. Pages of all groups hold as many
            tokens; each group has a span of its own.
        pages: of each group that addresses are reserved for, the null page included; of a group
            of which the device could not hold so many, fewer.
        poison: for tests. Each chunk that is mapped is overwritten with NaN.
        tenant: see `ChunkPool`.

    Raises:
        ConfigError: the device cannot keep that format.
        DeviceError: the addresses cannot be reserved.
    """

    def __init__(
        self,
        device: Device,
        layouts: Sequence[PageLayout],
        pages: int,
        *,
        poison: bool = False,
        tenant: Tenant | None = None,
    ) -> None:
        self.info = device.info
        self.layouts = tuple(layouts)
        self.geometries = tuple(geometry_of(layout, device.info, pages) for layout in layouts)
        self.host_bytes = tuple(layout.page_bytes for layout in layouts)
        self.poison = poison
        self._device = device
        self._pool = ChunkPool(device, tenant)
        self._backings: list[Backing] = []
        self._stats = ExecutorStats()
        try:
            for geometry, layout in zip(self.geometries, self.layouts, strict=True):
                self._backings.append(Backing(device, geometry, layout, self._pool))
        except BaseException:
            self.close()
            raise

    # --- pages -------------------------------------------------------------------------------

    def attempt(self, ops: Sequence[Op]) -> Attempt | Failed:
        """The first half of `commit`, which can be taken back: of several workers, all commit or
        none, so each holds its undo until all have said yes. See `Attempt`."""
        return Attempt.of(ops, self._backings, poison=self.poison)

    def commit(self, ops: Sequence[Op]) -> Applied | Failed:
        attempt = self.attempt(ops)
        return attempt if isinstance(attempt, Failed) else self.settle(attempt)

    def settle(self, attempt: Attempt) -> Applied | Failed:
        """The second half of `commit`. There is no way back after it."""
        applied, before = attempt.settle(), self._stats
        if isinstance(applied, Failed):
            return applied
        self._stats = ExecutorStats(
            peak_mapped_chunks=max(before.peak_mapped_chunks, self.mapped_chunks),
            maps=before.maps + applied.maps,
            unmaps=before.unmaps + applied.unmaps,
            copies=before.copies + applied.copies,
        )
        return applied

    def page(self, page: int, group: int = 0) -> Tensor:
        """The bytes of a page in use: uint8 [page_bytes], in the device's memory."""
        return self._backings[group].page(page)

    def copies(self, moves: Sequence[PageCopy]) -> list[Ticket]:
        copier, after = self._device.copier, self._device.fence()
        return [
            copier.to_host(move.host, self.page(move.page, move.group), after)
            if isinstance(move, Save)
            else copier.to_device(self.page(move.page, move.group), move.host, after)
            for move in moves
        ]

    def host_buffer(self, nbytes: int) -> Tensor:
        return self._device.copier.host_buffer(nbytes)

    def batches(self, step: Step) -> list[StepBatch]:
        """What attention and recurrences are asked in a step: a batch for each group, over its
        pages."""
        query_start = torch.from_numpy(step.query_start)
        context_len = torch.from_numpy(step.context_len)
        parents = None if step.parents is None else torch.from_numpy(step.parents)
        batches: list[StepBatch] = []
        for backing, pages in zip(self._backings, step.pages, strict=True):
            kv, layout, table = backing.kv, backing.layout, torch.from_numpy(pages)
            if isinstance(layout, StateLayout):
                batches.append(StateBatch(kv, layout, table, query_start, context_len))
            else:
                batches.append(AttentionBatch(kv, layout, table, query_start, context_len, parents))
        return batches

    def finish(self) -> None:
        self._device.fence().wait()

    # --- chunks ------------------------------------------------------------------------------

    @property
    def mapped(self) -> list[Collection[int]]:
        """The chunks of each group that are mapped."""
        return [backing.mapped.keys() for backing in self._backings]

    @property
    def mapped_chunks(self) -> int:
        return sum(map(len, self.mapped))

    @property
    def pooled_chunks(self) -> int:
        return len(self._pool)

    def fill(self, chunks: int) -> None:
        self._pool.fill(chunks)

    def drain(self, chunks: int = 0) -> None:
        self._pool.drain(chunks)

    # --- looking -----------------------------------------------------------------------------

    def stats(self) -> ExecutorStats:
        return self._stats

    def check(self, mapped: Sequence[Collection[int]]) -> None:
        for backing, chunks in zip(self._backings, mapped, strict=True):
            if set(backing.mapped) != set(chunks):
                raise IntegrityError(
                    f"chunks {sorted(backing.mapped)} are mapped; the page table has"
                    f" {sorted(chunks)}"
                )
        held = (self.mapped_chunks + self.pooled_chunks) * self.info.granularity
        counted = self._device.memory.info().chunks
        if held > counted:
            raise IntegrityError(f"pages hold {held} bytes, and the device counts {counted}")

    def close(self) -> None:
        for backing in self._backings:
            backing.release()
        self._pool.drain()


class LocalExecutor(LocalPages):
    """The pages of one device, and a model on it: a `kvrt.executor.interface.Executor`.

    Args:
        device: see `LocalPages`.
        layouts: see there.
        pages: see there.
        forward: of the model, which was loaded for this device.
        poison: see there.
        drafter: of what drafts.
        drafted_groups: the last so many groups are those of `drafter`.
        shared: `forward` has these, too.
        tenant: see there.
        headroom: for steps of `forward`; None: the device says itself what it has no memory for.
        drafting_headroom: likewise of `drafter`.

    Raises:
        ConfigError: see there.
        DeviceError: see there.
    """

    def __init__(
        self,
        device: Device,
        layouts: Sequence[PageLayout],
        pages: int,
        forward: Forward,
        *,
        drafter: Forward | None = None,
        drafted_groups: int = 0,
        shared: bool = False,
        poison: bool = False,
        tenant: Tenant | None = None,
        headroom: Headroom | None = None,
        drafting_headroom: Headroom | None = None,
    ) -> None:
        super().__init__(device, layouts, pages, poison=poison, tenant=tenant)
        self._headroom = {False: headroom, True: drafting_headroom}
        self._forward = forward
        self._drafter = drafter
        own = len(self.layouts) - drafted_groups
        self._groups = slice(0, None if shared else own), slice(own, None)
        self._owner = owner_of(device)

    def launch(self, step: Step) -> Running:
        forward, groups = self._forward, self._groups[step.drafting]
        if step.drafting:
            assert self._drafter is not None, "there is one where anybody drafts"
            forward = self._drafter
        if (headroom := self._headroom[step.drafting]) is not None:
            headroom.require(len(step.tokens), len(step.wanted))
        batches = self.batches(step)[groups]
        more: dict[str, object] = {}
        if step.adapters is not None:
            more["adapters"] = step.adapters.tolist()
        if step.seen:
            more["seen"] = step.seen
        if step.turns is not None:
            more["turns"] = step.turns
        with blaming(self._owner, "the forward pass"):
            logits = forward(
                torch.from_numpy(step.tokens), batches, torch.from_numpy(step.wanted), **more
            )
        return Running(logits, self._device.fence())
