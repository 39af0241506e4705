"""The KV memory of one model: the page table, kept in step with the pages of an executor.

    table  --grow, fork, free-->  Change  --commit-->  next table
                                              |
                                    ops, to the executor

A change is planned on values, as often as one likes; `commit` carries it out, wholly or not at all.
"""

import bisect
import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvrt.errors import CapacityError, ConfigError, IntegrityError, OutOfMemory
from kvrt.executor.interface import Failed, Ints, PageMemory, Step
from kvrt.kv.limit import Limit, LimitChange
from kvrt.kv.pages.group import Group, chunks_alone
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.pages.rows import PageRows
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.picture import GroupPicture, OwnerOf, picture_of
from kvrt.kv.spare import Spare
from kvrt.kv.stats import CacheStats
from kvrt.spi import PageLayout

log = logging.getLogger(__name__)

LONGEST = 2**31 - 1
"""Pages that any sequence could have: more than anything reads."""


class KVCache:
    """Keys and values of all sequences, and the memory under them.

    It belongs to one thread, the engine's. Other threads may call `set_memory_limit` and `stats`,
    and read `page_size`, `page_bytes` and `capacity_tokens`: those look at values that are replaced
    as a whole, and call no device.

    Args:
        executor: whose pages these are. It is the cache's from then on, and closed with it; also if
            there is no cache for one of the reasons below.
        limit_bytes: physical memory the cache may hold, rounded down to whole chunks.
        keep_warm_bytes: memory kept when idle, so that the first pages cost nothing; rounded down.
        windows: of each group, how far back its layers see, and how many first positions as well
            (`kvrt.kv.pages.group.Group`): what they see no more is given up. None: all see all.
        step_tokens: that a sequence computes at once, at most; None: any number. Beside those of
            its window, a group holds as many.

    If the executor has `poison`, each page that becomes free is overwritten with NaN as well, so
    that whoever reads a page without having written it shows.

    Raises:
        ConfigError: a size is negative.
        CapacityError: the limit has no room for a single page.
        OutOfMemory: the device has no memory for the null page.
    """

    def __init__(
        self,
        executor: PageMemory,
        *,
        limit_bytes: int,
        keep_warm_bytes: int = 0,
        windows: Sequence[tuple[int, int]] | None = None,
        step_tokens: int | None = None,
    ) -> None:
        self._executor = executor
        self.chunk_bytes = executor.info.granularity
        """Of physical memory, which is taken and given back by so much at a time."""
        self._rows = [PageRows(group) for group in range(len(executor.layouts))]
        self._step_tokens = step_tokens
        try:
            if keep_warm_bytes < 0:
                raise ConfigError(f"keep_warm_bytes is {keep_warm_bytes}; it must not be negative")
            self._spare = Spare(keep_warm_bytes // self.chunk_bytes)
            windows = windows or [(0, 0)] * len(executor.layouts)
            self._groups = [
                Group(geometry, *window)
                for geometry, window in zip(executor.geometries, windows, strict=True)
            ]
            self._limit = Limit(self._limit_chunks(limit_bytes), limit_bytes)
            change = PageTable.empty(self._groups, self._limit.chunks, scrub=executor.poison)
            self._table = change.table
            failed = self.commit(change)
            if failed is not None:
                raise failed.error
        except BaseException:
            self.close()
            raise

    # --- what a step does --------------------------------------------------------------------

    @property
    def table(self) -> PageTable:
        """The current page table, to plan on. It is replaced by this thread only."""
        self._table = self._limited()
        return self._table

    def _limited(self) -> PageTable:
        """The same, under the limit as another thread may just have changed it."""
        table, chunks = self._table, self._limit.chunks
        return table if table.limit == chunks else table.with_limit(chunks)

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
            applied = self._executor.commit(change.ops)
            if isinstance(applied, Failed):
                return applied
        self._table = replace(change.table, limit=self._limit.chunks, version=version + 1)
        return None

    def step(
        self,
        seqs: Sequence[SeqId],
        query_lens: Sequence[int],
        tokens: Sequence[int] = (),
        wanted: Sequence[int] = (),
        *,
        parents: Sequence[int] | None = None,
        contexts: Sequence[int] | None = None,
        adapters: Sequence[int] | None = None,
    ) -> Step:
        """The pass of sequences that compute `query_lens` new tokens, and have `contexts` tokens
        with them. `contexts`: None: all they have in the table. The others: see `Step`.

        Call it after `commit`. The rows of pages in it are valid until the next call.
        """
        table = self.table
        if contexts is None:
            contexts = [table.length(seq) for seq in seqs]
        return Step(
            pages=tuple(rows.select(table, seqs) for rows in self._rows),
            query_start=_ints([0, *itertools.accumulate(query_lens)]),
            context_len=_ints(contexts),
            parents=None if parents is None else _ints(parents),
            tokens=_ints(tokens),
            wanted=_ints(wanted),
            adapters=None if adapters is None else _ints(adapters),
        )

    def end_step(self, step: int) -> None:
        """Step number `step` has ended: the pages that waited for it are free.

        Gives back what is above the limit, and what was spare in every step for a while.
        """
        if self._table.retired:
            self._shrink(self.table.reclaim(step))
        self._limit.step()
        spare = self._spare_chunks
        keep = self._spare.after_step(self._needed, spare, self._limit.chunks)
        if keep < spare:
            self._keep_spare(keep)

    def reclaim(self) -> None:
        """No step is in flight: the pages that wait for the end of one are free."""
        if retired := self._table.retired:
            self._shrink(self.table.reclaim(max(entry.step for entry in retired)))

    def idle(self) -> None:
        """Nothing runs or waits: give memory back down to what is kept warm, or create up to it.

        Waits for the device to end what it still does. With `poison`, checks integrity.
        """
        self._executor.finish()
        self.reclaim()
        self._limit.restore()
        keep = self._spare.when_idle(self._needed, self._limit.chunks)
        self._keep_spare(keep)
        try:
            self._executor.fill(keep - self._table.warm_chunks)
        except OutOfMemory as error:
            log.debug("cannot create chunks ahead of need: %s", error)
        if self._executor.poison:
            self.check_integrity()

    def close(self) -> None:
        """Give all memory and addresses back. Safe to call twice."""
        self._executor.close()

    @property
    def layouts(self) -> tuple[PageLayout, ...]:
        """Of each group of layers: what is where in a page."""
        return self._executor.layouts

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
        return self._min_chunks * self.chunk_bytes

    # --- the limit ---------------------------------------------------------------------------

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one sequence can have if it has the cache for itself, and the device all the
        memory that the limit allows. Where all groups have a window, memory may not say so: then
        it is `LONGEST` pages."""
        full = [group.geometry.pages - 1 for group in self._groups if not group.window]
        longest = min(full, default=LONGEST)
        pages = bisect.bisect_right(
            range(1, longest + 1), self._limit.asked_chunks, key=self._chunks_for
        )
        return pages * self.page_size

    def bytes_for(self, tokens: int) -> int:
        """Physical memory that one sequence of so many tokens needs, if it has the cache for
        itself."""
        return self._chunks_for(-(-tokens // self.page_size)) * self.chunk_bytes

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
        if not self._limit.ask(chunks, limit_bytes, revision):
            return LimitChange.STALE
        return LimitChange.APPLIED if self._held <= chunks else LimitChange.DEFERRED

    def limit_to_held(self) -> int:
        """Lower the limit to what is held now, because the device has no more; returns its bytes.

        If that much was held already, a device that has memory has nowhere to map it; then the
        limit is what is mapped. So whoever plans and fails again and again comes to an end. What
        was asked for is tried again when some steps have ended (`kvrt.kv.limit`), or nothing runs.

        For the engine's thread, after `commit` has failed.
        """
        held = min(self._held, self._limit.chunks)
        if held == self._limit.chunks:
            self._executor.drain()
            held = max(self._min_chunks, min(self._executor.mapped_chunks, held - 1))
        return self._lower(held)

    def leave(self, nbytes: int | None) -> None:
        """Others leave so much, which may be nothing: the limit is no higher until this is said
        again. None: they leave all. For the engine's thread."""
        chunks = None if nbytes is None else max(0, nbytes) // self.chunk_bytes
        self._limit.leave(None if chunks is None else (chunks, chunks * self.chunk_bytes))

    @property
    def asked_bytes(self) -> int:
        """What may be held where there is memory enough: the limit that was asked for, or all that
        there are addresses for."""
        return self._limit.asked_chunks * self.chunk_bytes

    @property
    def squeezed(self) -> bool:
        """Others leave less than the limit."""
        return self._limit.squeezed

    @property
    def needed_bytes(self) -> int:
        """Physical memory of chunks with a page that is in use, or cached."""
        return self._needed * self.chunk_bytes

    @property
    def held_bytes(self) -> int:
        """Physical memory that is taken now."""
        return self._held * self.chunk_bytes

    def give_beyond_limit(self) -> None:
        """Give back what no page needs and is more than the limit, after it was lowered."""
        self._keep_spare(min(self._spare_chunks, max(0, self._limit.chunks - self._needed)))

    def give_spare(self) -> None:
        """Give back all that no page needs: something else wants the device's memory."""
        self._keep_spare(0)

    def limit_below(self, held_bytes: int) -> int:
        """Lower the limit by an eighth of what was held when the device had too little left for
        anything else; returns its bytes. It comes back as after `limit_to_held`. For the engine's
        thread."""
        chunks = held_bytes // self.chunk_bytes
        less = max(self._min_chunks, chunks - max(1, chunks // 8))
        return self._lower(min(less, self._limit.chunks))

    def _lower(self, chunks: int) -> int:
        self._limit.lower(chunks, chunks * self.chunk_bytes)
        return self._limit.nbytes

    @property
    def bytes_over_limit(self) -> int:
        """Bytes of chunks with pages in use beyond the limit, after it was lowered."""
        return self._limited().chunks_over_limit * self.chunk_bytes

    # --- looking -----------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """From any thread, at any time."""
        table, executor, size = self._limited(), self._executor, self.chunk_bytes
        limit, asked = self._limit.in_bytes
        done = executor.stats()
        return CacheStats(
            page_bytes=self.page_bytes,
            used_pages=table.used_pages,
            cached_pages=table.idle_pages,
            cached_bytes=table.idle_bytes,
            free_pages=table.free_pages,
            retired_pages=table.retired_pages,
            mapped_bytes=executor.mapped_chunks * size,
            pooled_bytes=executor.pooled_chunks * size,
            spare_bytes=self._spare_chunks * size,
            limit_bytes=limit,
            asked_bytes=asked,
            peak_mapped_bytes=done.peak_mapped_chunks * size,
            maps=done.maps,
            unmaps=done.unmaps,
            copies=done.copies,
        )

    def picture(self, cells: int, owner_of: OwnerOf | None = None) -> tuple[GroupPicture, ...]:
        """Where pages are; of each group of layers, in at most so many cells. From any thread."""
        return picture_of(self._table, cells, owner_of)

    def check_integrity(self) -> None:
        """Compare the table with itself, with what is mapped, and with the device's own count.

        Raises:
            IntegrityError: they disagree.
        """
        check_table(self._table)
        self._executor.check([lane.placement.held for lane in self._table.lanes])

    # --- within ------------------------------------------------------------------------------

    @property
    def _held(self) -> int:
        """Chunks of physical memory that are taken: mapped and pooled."""
        return self._executor.mapped_chunks + self._executor.pooled_chunks

    @property
    def _min_chunks(self) -> int:
        return self._chunks_for(1)

    def _chunks_for(self, pages: int) -> int:
        """Chunks under what a sequence of so many pages needs of each group, and under their null
        pages."""
        length = pages * self.page_size
        step = length if self._step_tokens is None else self._step_tokens
        return chunks_alone(self._groups, length, step)

    @property
    def _needed(self) -> int:
        """Chunks with a page that is used or retired."""
        table = self._table
        return table.mapped_chunks - table.warm_chunks

    @property
    def _spare_chunks(self) -> int:
        return self._table.warm_chunks + self._executor.pooled_chunks

    def _keep_spare(self, count: int) -> None:
        """Give spare chunks back until `count` are left. Mapped ones are kept first."""
        self._shrink(self.table.trim(count))
        self._executor.drain(max(0, count - self._table.warm_chunks))

    def _shrink(self, change: Change) -> None:
        """Commit what needs no memory. A system may yet refuse; then it is tried again later."""
        failed = self.commit(change)
        if failed is not None:
            log.warning("cannot give memory back now: %s", failed.error)

    def _limit_chunks(self, limit_bytes: int) -> int:
        most = sum(geometry.chunks for geometry in self._executor.geometries)
        chunks = min(limit_bytes // self.chunk_bytes, most)
        if chunks < self._min_chunks:
            raise CapacityError(
                f"a KV cache of {limit_bytes} bytes has no room for a single page",
                needed=self.min_bytes,
                free=limit_bytes,
                fix=f"give it at least {self.min_bytes} bytes",
            )
        return chunks


def _ints(numbers: Sequence[int]) -> Ints:
    return np.array(numbers, np.int32)
