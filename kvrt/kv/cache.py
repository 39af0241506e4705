"""The KV memory of one model on one device: the page table, and what it stands for.

    table  --grow, fork, free-->  Change  --commit-->  next table
                                              |
                                    map, unmap, copy on the device

A change is planned on values, as often as one likes; `commit` carries it out, wholly or not at all.
"""

import bisect
import enum
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kvrt.errors import CapacityError, ConfigError, IntegrityError, OutOfMemory
from kvrt.kv.pages.apply import Failed, apply
from kvrt.kv.pages.backing import Backing
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.pages.limit import Limit
from kvrt.kv.pages.pool import ChunkPool
from kvrt.kv.pages.rows import PageRows
from kvrt.kv.pages.table import Change, PageTable
from kvrt.spi import AttentionBatch, Device, DeviceInfo, KVLayout

log = logging.getLogger(__name__)

_WINDOW_STEPS = 32
"""While steps run, memory is given back if it was spare in each of so many steps."""

_RETURNED_AT_ONCE = 32
"""Chunks given back after one window at most, so that no step waits long: 20 us each on a CPU."""


class LimitChange(enum.Enum):
    """What became of a change of the memory limit."""

    APPLIED = "applied"
    """The memory held is within it, and so is every step planned from now on."""

    DEFERRED = "deferred"
    """More is held. No more is taken, and it is given back as it comes free."""

    STALE = "stale"
    """A change with the same or a higher revision came before; this one was ignored."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Where a cache stands.

    Args:
        page_bytes: bytes of a page, of each group one.
        used_pages: pages that sequences hold, of all groups, shared ones counted once.
        cached_pages: pages that no sequence holds, kept for those that begin with the same tokens.
        free_pages: pages, of each group, that can be handed out within the limit.
        retired_pages: pages that wait for the end of a step.
        mapped_bytes: physical memory in the span.
        pooled_bytes: physical memory created and not mapped. The cache holds both.
        spare_bytes: the part of both that no page needs: kept for the next ones, or to be given
            back.
        limit_bytes: the limit on what it holds.
        asked_bytes: the limit that was set; more than `limit_bytes` after the device had less,
            until that much is tried again.
        peak_mapped_bytes: the most that was mapped so far.
        maps: chunks mapped so far.
        unmaps: chunks unmapped so far.
        copies: shared pages copied so far because a sequence wrote to one.
    """

    page_bytes: int
    used_pages: int
    cached_pages: int
    free_pages: int
    retired_pages: int
    mapped_bytes: int
    pooled_bytes: int
    spare_bytes: int
    limit_bytes: int
    asked_bytes: int
    peak_mapped_bytes: int
    maps: int
    unmaps: int
    copies: int


class KVCache:
    """Keys and values of all sequences, and the memory under them.

    It belongs to one thread, the engine's. Other threads may call `set_memory_limit` and `stats`,
    and read `page_size`, `page_bytes` and `capacity_tokens`: those look at values that are replaced
    as a whole, and call no device.

    Args:
        device: opened by the caller, who closes it after the cache.
        layouts: of each group of layers: what is where in a page. Pages of all groups hold as many
            tokens; each group has a span of its own.
        pages: of each group that addresses are reserved for, the null page included.
        limit_bytes: physical memory the cache may hold, rounded down to whole chunks.
        keep_warm_bytes: memory kept when idle, so that the first pages cost nothing; rounded down.
        poison: for tests. Each page that becomes free, and each chunk that is mapped, is
            overwritten with NaN, so that whoever reads a page without having written it shows.
        windows: of each group, how far back its layers see, and how many first positions as well
            (`kvrt.kv.pages.group.Group`): what they see no more is given up. None: all see all.

    Raises:
        ConfigError: the device cannot keep that format, or a size is negative.
        CapacityError: the limit has no room for a single page.
        OutOfMemory: the device has no memory for the null page.
    """

    def __init__(
        self,
        device: Device,
        layouts: Sequence[KVLayout],
        pages: int,
        *,
        limit_bytes: int,
        keep_warm_bytes: int = 0,
        poison: bool = False,
        windows: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.layouts = tuple(layouts)
        self._geometries = [geometry_of(layout, device.info, pages) for layout in layouts]
        self._chunk_bytes = device.info.granularity
        windows = windows or [(0, 0)] * len(self.layouts)
        if keep_warm_bytes < 0:
            raise ConfigError(f"keep_warm_bytes is {keep_warm_bytes}; it must not be negative")
        self._poison = poison
        self._floor = keep_warm_bytes // self._chunk_bytes
        self._limit = Limit(self._limit_chunks(limit_bytes), limit_bytes)
        self._revision: int | None = None
        self._lock = threading.Lock()  # over the table's replacement and the limit in it
        self._rows = [PageRows(group) for group in range(len(self.layouts))]
        self._window = 0  # steps since spare memory was last looked at
        self._least_spare = 0
        self._peak = self._maps = self._unmaps = self._copies = 0
        self._device = device
        self._pool = ChunkPool(device.memory)
        self._backings: list[Backing] = []
        try:
            for geometry, layout in zip(self._geometries, self.layouts, strict=True):
                self._backings.append(Backing(device, geometry, layout, self._pool))
        except BaseException:
            self.close()
            raise
        change = PageTable.empty(
            [
                Group(geometry, *window)
                for geometry, window in zip(self._geometries, windows, strict=True)
            ],
            self._limit.chunks,
            scrub=poison,
        )
        self._table = change.table
        failed = self.commit(change)
        if failed is not None:
            self.close()
            raise failed.error

    # --- what a step does --------------------------------------------------------------------

    @property
    def table(self) -> PageTable:
        """The current page table, to plan on."""
        return self._table

    def commit(self, change: Change) -> Failed | None:
        """Carry out a change that was planned on the current table; its table becomes the current.

        Returns None, or `Failed` if the device is out of memory: then the old table stands.

        Raises:
            DeviceError: a device call failed; the old table stands.
            IntegrityError: the change was planned on another table than the current one.
        """
        version = self._table.version
        if change.table.version != version:
            raise IntegrityError(
                f"a change was planned on version {change.table.version} of the page table, and"
                f" the current one is {version}"
            )
        if change.ops:
            applied = apply(change.ops, self._backings, poison=self._poison)
            if isinstance(applied, Failed):
                return applied
            self._maps += applied.maps
            self._unmaps += applied.unmaps
            self._copies += applied.copies
            self._peak = max(self._peak, self._mapped)
        with self._lock:
            # Another thread may have changed the limit since the change was planned.
            self._table = replace(change.table, limit=self._limit.chunks, version=version + 1)
        return None

    def batch(
        self,
        seqs: Sequence[SeqId],
        query_lens: Sequence[int],
        parents: Sequence[int] | None = None,
        contexts: Sequence[int] | None = None,
        group: int = 0,
    ) -> AttentionBatch:
        """The attention batch of sequences that compute `query_lens` new tokens, and have
        `contexts` tokens with them, over the pages of one group.

        `parents`: see `kvrt.spi.AttentionBatch`. `contexts`: None: all they have in the table.

        Call it after `commit`. The page table in it is valid until the next call.
        """
        table = self._table
        if contexts is None:
            contexts = [table.length(seq) for seq in seqs]
        return AttentionBatch(
            kv=self._backings[group].kv,
            layout=self.layouts[group],
            page_table=torch.from_numpy(self._rows[group].select(table, seqs)),
            query_start=int32([0, *itertools.accumulate(query_lens)]),
            context_len=int32(contexts),
            parents=None if parents is None else int32(parents),
        )

    def end_step(self, step: int) -> None:
        """Step number `step` has ended: the pages that waited for it are free.

        Gives back what is above the limit, and what was spare in every step for a while.
        """
        if self._table.retired:
            self._shrink(self._table.reclaim(step))
        self._ask_again(self._limit.step)
        needed, spare = self._needed(), self._spare()
        if spare > max(0, self._limit.chunks - needed):
            self._keep_spare(max(0, self._limit.chunks - needed))
        self._least_spare = min(self._least_spare, spare)
        self._window += 1
        if self._window == _WINDOW_STEPS:
            surplus = self._least_spare - max(0, self._floor - needed)
            if surplus > 0:
                self._keep_spare(self._spare() - min(surplus, _RETURNED_AT_ONCE))
            self._window, self._least_spare = 0, self._spare()

    def reclaim(self) -> None:
        """No step is in flight: the pages that wait for the end of one are free."""
        if retired := self._table.retired:
            self._shrink(self._table.reclaim(max(entry.step for entry in retired)))

    def idle(self) -> None:
        """Nothing runs or waits: give memory back down to what is kept warm, or create up to it.

        Waits for the device to end what it still does. With `poison`, checks integrity.
        """
        self._device.fence().wait()
        self.reclaim()
        self._ask_again(self._limit.restore)
        keep = max(0, min(self._floor, self._limit.chunks) - self._needed())
        self._keep_spare(keep)
        try:
            self._pool.fill(keep - self._table.warm_chunks)
        except OutOfMemory as error:
            log.debug("cannot create chunks ahead of need: %s", error)
        self._window, self._least_spare = 0, self._spare()
        if self._poison:
            self.check_integrity()

    def close(self) -> None:
        """Give all memory and addresses back. Safe to call twice."""
        for backing in self._backings:
            backing.release()
        self._pool.drain()

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.layouts[0].page_size

    @property
    def page_bytes(self) -> int:
        """Bytes that a page's tokens take, in all groups together."""
        return sum(layout.page_bytes for layout in self.layouts)

    @property
    def min_bytes(self) -> int:
        """The least that it can go on with: a page of each group, and their null pages."""
        return self._min_chunks * self._chunk_bytes

    def page(self, page: int, group: int = 0) -> torch.Tensor:
        """The bytes of a page in use: uint8 [page_bytes], in the device's memory."""
        return self._backings[group].page(page)

    # --- the limit ---------------------------------------------------------------------------

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one sequence can have if it has the cache for itself, and the device all the
        memory that the limit allows."""
        pages = bisect.bisect_right(
            range(1, self._geometries[0].pages), self._limit.asked_chunks, key=self._chunks_for
        )
        return pages * self.page_size

    def set_memory_limit(self, limit_bytes: int, revision: int | None = None) -> LimitChange:
        """Change how much physical memory the cache may hold. From any thread, at any time.

        A step that is being planned right now may still go by the old limit. Memory is given back
        by the engine's thread, in `end_step` and `idle`.

        Args:
            limit_bytes: rounded down to whole chunks.
            revision: numbers the caller's changes; one that comes late, after a newer one, is
                ignored. None: it is the newest.

        Raises:
            CapacityError: the limit has no room for a single page.
        """
        chunks = self._limit_chunks(limit_bytes)
        with self._lock:
            if revision is not None:
                if self._revision is not None and revision <= self._revision:
                    return LimitChange.STALE
                self._revision = revision
            self._limit.ask(chunks, limit_bytes)
            self._table = self._table.with_limit(chunks)
        return LimitChange.APPLIED if self._held <= chunks else LimitChange.DEFERRED

    def limit_to_held(self) -> int:
        """Lower the limit to what is held now, because the device has no more; returns its bytes.

        If that much was held already, a device that has memory has nowhere to map it; then the
        limit is what is mapped. So whoever plans and fails again and again comes to an end. What
        was asked for is tried again when some steps have ended (`kvrt.kv.pages.limit`), or nothing
        runs.

        For the engine's thread, after `commit` has failed.
        """
        held = min(self._held, self._limit.chunks)
        if held == self._limit.chunks:
            self._pool.drain()
            held = max(self._min_chunks, min(self._mapped, held - 1))
        return self._lower(held)

    @property
    def held_bytes(self) -> int:
        """Physical memory that is taken now."""
        return self._held * self._chunk_bytes

    def give_spare(self) -> None:
        """Give back all that no page needs: something else wants the device's memory."""
        self._keep_spare(0)

    def limit_below(self, held_bytes: int) -> int:
        """Lower the limit by an eighth of what was held when the device had too little left for
        anything else; returns its bytes. It comes back as after `limit_to_held`. For the engine's
        thread."""
        chunks = held_bytes // self._chunk_bytes
        less = max(self._min_chunks, chunks - max(1, chunks // 8))
        return self._lower(min(less, self._limit.chunks))

    def _lower(self, chunks: int) -> int:
        with self._lock:
            self._limit.lower(chunks, chunks * self._chunk_bytes)
            self._table = self._table.with_limit(chunks)
        return self._limit.nbytes

    def _ask_again(self, due: Callable[[], bool]) -> None:
        """Let the limit that was asked for hold again, if it does not and that is due."""
        with self._lock:
            if due():
                self._table = self._table.with_limit(self._limit.chunks)

    @property
    def bytes_over_limit(self) -> int:
        """Bytes of chunks with pages in use beyond the limit, after it was lowered."""
        return max(0, self._needed() - self._limit.chunks) * self._chunk_bytes

    # --- looking -----------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """From any thread, at any time."""
        with self._lock:
            table, limit, asked = self._table, self._limit.nbytes, self._limit.asked_bytes
        return CacheStats(
            page_bytes=self.page_bytes,
            used_pages=table.used_pages,
            cached_pages=table.idle_pages,
            free_pages=table.free_pages,
            retired_pages=table.retired_pages,
            mapped_bytes=self._mapped * self._chunk_bytes,
            pooled_bytes=len(self._pool) * self._chunk_bytes,
            spare_bytes=self._spare() * self._chunk_bytes,
            limit_bytes=limit,
            asked_bytes=asked,
            peak_mapped_bytes=self._peak * self._chunk_bytes,
            maps=self._maps,
            unmaps=self._unmaps,
            copies=self._copies,
        )

    def check_integrity(self) -> None:
        """Compare the table with itself, with what is mapped, and with the device's own count.

        Raises:
            IntegrityError: they disagree.
        """
        check_table(self._table)
        for backing, lane in zip(self._backings, self._table.lanes, strict=True):
            if set(backing.mapped) != set(lane.placement.held):
                raise IntegrityError(
                    f"chunks {sorted(backing.mapped)} are mapped; the page table has"
                    f" {sorted(lane.placement.held)}"
                )
        counted = self._device.memory.info().chunks
        if self.held_bytes > counted:
            raise IntegrityError(
                f"the cache holds {self.held_bytes} bytes, and the device counts {counted}"
            )

    # --- within ------------------------------------------------------------------------------

    @property
    def _mapped(self) -> int:
        return sum(len(backing.mapped) for backing in self._backings)

    @property
    def _held(self) -> int:
        """Chunks of physical memory that are taken: mapped and pooled."""
        return self._mapped + len(self._pool)

    @property
    def _min_chunks(self) -> int:
        return self._chunks_for(1)

    def _chunks_for(self, pages: int) -> int:
        """Chunks under the null page and so many more, of each group."""
        return sum(geometry.chunks_of(pages).stop for geometry in self._geometries)

    def _needed(self) -> int:
        """Chunks with a page that is used or retired."""
        return self._table.mapped_chunks - self._table.warm_chunks

    def _spare(self) -> int:
        return self._table.warm_chunks + len(self._pool)

    def _keep_spare(self, count: int) -> None:
        """Give spare chunks back until `count` are left. Mapped ones are kept first."""
        self._shrink(self._table.trim(count))
        self._pool.drain(max(0, count - self._table.warm_chunks))

    def _shrink(self, change: Change) -> None:
        """Commit what needs no memory. A system may yet refuse; then it is tried again later."""
        failed = self.commit(change)
        if failed is not None:
            log.warning("cannot give memory back now: %s", failed.error)

    def _limit_chunks(self, limit_bytes: int) -> int:
        most = sum(geometry.chunks for geometry in self._geometries)
        chunks = min(limit_bytes // self._chunk_bytes, most)
        if chunks < self._min_chunks:
            raise CapacityError(
                f"a KV cache of {limit_bytes} bytes has no room for a single page",
                needed=self.min_bytes,
                free=limit_bytes,
                fix=f"give it at least {self.min_bytes} bytes",
            )
        return chunks


def int32(numbers: Sequence[int]) -> torch.Tensor:
    """A tensor on the host, through numpy: `torch.tensor` takes five times as long."""
    return torch.from_numpy(np.array(numbers, np.int32))


def geometry_of(layout: KVLayout, info: DeviceInfo, pages: int) -> Geometry:
    """So many pages of a layout over the chunks of a device.

    Raises:
        ConfigError: the device does not keep keys and values in that format.
    """
    if layout.format not in info.kv_formats:
        raise ConfigError(
            f"{info.backend} cannot keep keys and values in {layout.format}",
            fix=f"set kv_cache_dtype to one of {', '.join(info.kv_formats)}",
        )
    return Geometry(layout.page_bytes, layout.page_size, info.granularity, pages)
