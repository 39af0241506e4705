"""A KV cache beside plain lists: every operation is done on both, and they are compared.

Each token stores a number of its own, in every layer, head and dimension, so that a byte that
belongs to another token, or to none, is seen wherever it is.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from kvrt.executor.interface import Failed
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.holders import Holders
from kvrt.kv.pages.lanes import Pages, Shortage
from kvrt.kv.pages.packing import can_pack, pack
from kvrt.kv.pages.table import Change, PageTable
from kvrt.spi import Device

from .shapes import kind_and_window, layout, shape


@dataclass
class Oracle:
    """What must be in the cache.

    Args:
        tokens: of each sequence.
        named: tokens in each page that an index would hold; a page of each group.
        retired: step, group, page and tokens in it, of pages that a step in flight may read.
    """

    tokens: dict[int, list[int]] = field(default_factory=dict)
    named: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    retired: list[tuple[int, int, int, list[int]]] = field(default_factory=list)


OFFSET = 1_000_000
"""Between the numbers of a token in two groups: float32 tells all of them apart."""


class Model:
    """Drives a `KVCache` and an `Oracle` at once.

    Args:
        device: any real one.
        kind: of pages, see `shapes`; of several groups, with a plus between them.
        chunks: that those of each group lie over.
        limit: in chunks.
        keep_warm: in chunks.
    """

    def __init__(
        self, device: Device, kind: str, *, chunks: int = 24, limit: int, keep_warm: int
    ) -> None:
        chunk = device.info.granularity
        kinds, windows = zip(*map(kind_and_window, kind.split("+")), strict=True)
        shapes = [shape(each, chunks=chunks, chunk_bytes=chunk) for each in kinds]
        self.keep_warm = keep_warm
        self.pages = LocalPages(
            device,
            [layout(each, chunk_bytes=chunk) for each in kinds],
            max(each.pages for each in shapes),
            poison=True,
        )
        self.cache = KVCache(
            self.pages,
            limit_bytes=limit * chunk,
            keep_warm_bytes=keep_warm * chunk,
            windows=windows,
        )
        self.chunk = chunk
        self.straddles = any(chunk % each.page_bytes for each in shapes)
        self.groups = range(len(kinds))
        self.oracle = Oracle()
        self.step = 0
        self.shortages = 0
        self._ids = itertools.count(1)
        self._payload = itertools.count(1)
        self.views = [self._view(group) for group in self.groups]

    def _view(self, group: int) -> torch.Tensor:
        """[page, layer, k|v, head, slot, d]"""
        form, geometry = self.cache.layouts[group], self.table.lanes[group].geometry
        return torch.as_strided(
            self.pages.batches(self.cache.step([], []))[group].kv,
            (geometry.pages, form.layers, 2, form.kv_heads, form.page_size, form.head_dim),
            (
                form.page_stride,
                form.layer_stride,
                form.v_offset,
                form.head_stride,
                form.head_dim,
                1,
            ),
        )

    def rows(self, seq: int) -> list[tuple[int, ...]]:
        """Its pages in each group."""
        return [self.table.pages(seq, group) for group in self.groups]

    @property
    def table(self) -> PageTable:
        return self.cache.table

    @property
    def held(self) -> int:
        """Chunks of memory that are held."""
        stats = self.cache.stats()
        return (stats.mapped_bytes + stats.pooled_bytes) // self.chunk

    @property
    def needed(self) -> int:
        """Chunks that hold something."""
        return self.table.mapped_chunks - self.table.warm_chunks

    # --- operations --------------------------------------------------------------------------

    def commit(self, change: Change) -> None:
        failed = self.cache.commit(change)
        assert not isinstance(failed, Failed), failed.error
        for pages in zip(*change.dropped, strict=True):
            del self.oracle.named[pages]

    def grow(self, tokens: dict[int, int]) -> bool:
        before = self.table
        change = before.grow(tokens)
        if isinstance(change, Shortage):
            self.shortages += 1
            assert self.table is before
            assert change.free < change.needed
            assert before.free_pages <= change.free or len(self.groups) > 1
            return False
        for seq in tokens:
            rows = [change.table.pages(seq, group) for group in self.groups]
            assert self._has_kept(rows, before.length(seq)), "a page went too early"
        self.commit(change)
        assert self.table.mapped_chunks <= max(before.limit, before.mapped_chunks)
        for seq, count in tokens.items():
            known = self.oracle.tokens.setdefault(seq, [])
            new = list(itertools.islice(self._payload, count))
            self.write(seq, len(known), new)
            known += new
        return True

    def add(self, count: int) -> None:
        self.grow({next(self._ids): count})

    def fork(self, parent: int) -> None:
        child = next(self._ids)
        self.commit(self.table.fork(parent, child))
        self.oracle.tokens[child] = list(self.oracle.tokens[parent])

    def truncate(self, seq: int, length: int, *, fenced: bool) -> None:
        rows = self.rows(seq)
        if not self._has_kept(rows, length):
            with pytest.raises(ValueError, match="has given up pages that"):
                self.table.truncate(seq, length)
            return
        self.commit(self.table.truncate(seq, length, after=self.step if fenced else None))
        self._keep_retired(seq, rows)
        del self.oracle.tokens[seq][length:]

    def pick(self, seq: int, start: int, picked: list[int], *, fenced: bool) -> None:
        """Does nothing if somebody else holds what would be written, or nobody does."""
        rows, tokens = self.rows(seq), self.oracle.tokens[seq]
        if not self._has_kept(rows, start + len(picked)) or not self._has_kept(rows, start):
            return
        if not all(all(row[start // self.cache.page_size :]) for row in rows):
            return
        others = [page for other in self.oracle.tokens for page in self.table.pages(other)]
        named = {pages[0] for pages in self.oracle.named}
        if any(
            others.count(page) > 1 or page in named
            for page in rows[0][start // self.cache.page_size :]
        ):
            return
        self.commit(self.table.pick(seq, start, picked, after=self.step if fenced else None))
        self._keep_retired(seq, rows)
        tokens[start:] = [tokens[slot] for slot in picked]

    def free(self, seq: int, *, fenced: bool) -> None:
        rows = self.rows(seq)
        self.commit(self.table.free(seq, after=self.step if fenced else None))
        self._keep_retired(seq, rows)
        del self.oracle.tokens[seq]

    def name(self, seq: int, pages: int) -> None:
        """An index takes the first pages of a sequence, those that it does not hold."""
        tokens, size = self.oracle.tokens[seq], self.cache.page_size
        entries = enumerate(list(zip(*self.rows(seq), strict=True))[:pages])
        new = [(at, each) for at, each in entries if all(each) and each not in self.oracle.named]
        self.commit(self.table.name(self._by_group([entry for _, entry in new])))
        for at, entry in new:
            self.oracle.named[entry] = tokens[at * size : (at + 1) * size]

    def attach(self, entries: list[tuple[int, ...]]) -> None:
        """A new sequence begins with pages that have names."""
        seq = next(self._ids)
        rows = tuple(np.array(row, np.int32) for row in self._by_group(entries))
        self.commit(self.table.attach(seq, rows))
        self.oracle.tokens[seq] = [t for entry in entries for t in self.oracle.named[entry]]

    def fetch(self, entries: list[tuple[int, ...]], more: int) -> None:
        """A new sequence begins with pages that have names, and more that come from elsewhere: of
        each group those that it needs then."""
        size, seq, here = self.cache.page_size, next(self._ids), len(entries)
        rows = tuple(np.array(row, np.int32) for row in self._by_group(entries))
        attached = self.table.attach(seq, rows)
        kept = [lane.group.kept((here + more) * size) for lane in self.table.lanes]
        places = tuple(tuple(at for p in parts for at in p if at >= here) for parts in kept)
        filled = attached.table.fill(seq, here + more, places)
        if isinstance(filled, Shortage):
            self.shortages += 1
            return
        self.commit(attached.then(filled))
        new = list(itertools.islice(self._payload, more * size))
        self.oracle.tokens[seq] = [t for entry in entries for t in self.oracle.named[entry]] + new
        self.write(seq, here * size, new)

    def forget(self, entries: list[tuple[int, ...]]) -> None:
        """The index gives pages up, in use or not."""
        self.commit(self.table.forget(self._by_group(entries)))

    def pack(self, chunks: int, still: list[int]) -> None:
        """Pages move together, but for those of some sequences, and those that a step may read."""
        rows, needed = [self.rows(seq) for seq in still], self.needed
        can, change = can_pack(self.table, chunks, still), pack(self.table, chunks, still)
        self.commit(change)
        assert [self.rows(seq) for seq in still] == rows
        assert self.table.packed_chunks <= self.needed <= needed
        if can:
            assert needed - self.needed >= chunks
        if not (still or self.oracle.retired or self.straddles):
            least = max(self.table.packed_chunks, needed - chunks)
            assert self.needed == least
            assert can == (least == needed - chunks)
        named = self.oracle.named
        for group, moved in enumerate(change.moved):
            named = {
                (*at[:group], moved.get(at[group], at[group]), *at[group + 1 :]): tokens
                for at, tokens in named.items()
            }
        self.oracle.named = named

    def _has_kept(self, rows: list[tuple[int, ...]], length: int) -> bool:
        """Whether a sequence has all pages that a token at position `length` sees, or goes into."""
        size = self.cache.page_size
        for lane, row in zip(self.table.lanes, rows, strict=True):
            window, sinks = lane.group.window, lane.group.sinks
            seen = [p for p in range(length) if not window or p < sinks or p > length - window]
            into = [length] if length % size else []
            if not all(row[position // size] for position in seen + into):
                return False
        return True

    def _by_group(self, entries: list[tuple[int, ...]]) -> Pages:
        return tuple(tuple(entry[group] for entry in entries) for group in self.groups)

    def replace(self, victim: int, count: int) -> None:
        """Preempt one sequence for a new one, in one change, as the scheduler does."""
        freed = self.table.free(victim)
        grown = freed.table.grow({(new := next(self._ids)): count})
        if isinstance(grown, Shortage):
            return
        self.commit(freed.then(grown))
        del self.oracle.tokens[victim]
        self.oracle.tokens[new] = list(itertools.islice(self._payload, count))
        self.write(new, 0, self.oracle.tokens[new])

    def plan_and_forget(self, seq: int) -> None:
        """Whatever is planned on a table leaves the table as it is."""
        before = self.table
        before.grow({seq: 9})
        before.fork(seq, -1)
        before.free(seq)
        before.trim()
        assert self.table is before

    def end_step(self) -> None:
        self.cache.end_step(self.step)
        assert self.held <= max(self.table.limit, self.needed)
        self.oracle.retired = [entry for entry in self.oracle.retired if entry[0] > self.step]
        self.step += 1

    def idle(self) -> None:
        self.cache.idle()
        self.oracle.retired.clear()
        assert self.held == max(self.needed, min(self.keep_warm, self.table.limit))

    def set_limit(self, chunks: int) -> None:
        self.cache.set_memory_limit(chunks * self.chunk)

    def empty(self) -> None:
        """Free everything: nothing may be left."""
        for seq in list(self.oracle.tokens):
            self.free(seq, fenced=bool(seq % 2))
        self.forget([*self.oracle.named])
        self.end_step()
        self.idle()
        self.check()
        assert self.table.used_pages == self.table.retired_pages == 0
        for lane in self.table.lanes:
            assert lane.placement.used_pages == 1, "the null page"
            assert lane.holders == Holders.none()

    # --- comparing ---------------------------------------------------------------------------

    def check(self, *, every_byte: bool = False, but: int | None = None) -> None:
        """Compare; of each head's vector only the two ends, if not `every_byte`.

        `but`: a sequence whose bytes are not looked at.
        """
        self.cache.check_integrity()
        table = self.table
        assert set(table.sequences) == set(self.oracle.tokens)
        assert table.retired_pages == len(self.oracle.retired)
        counts = [self._check_group(group, every_byte, but) for group in self.groups]
        assert (table.used_pages, table.idle_pages) == tuple(map(sum, zip(*counts, strict=True)))
        for seq in self.oracle.tokens:
            assert table.own_bytes(seq) == self._own_bytes(seq)

    def _check_group(self, group: int, every_byte: bool, but: int | None) -> tuple[int, int]:
        """Returns how many pages are used, and how many are idle."""
        lane, form = self.table.lanes[group], self.cache.layouts[group]
        view = self.views[group] if every_byte else self.views[group][..., :: form.head_dim - 1]
        rows: Counter[int] = Counter()
        for seq, tokens in self.oracle.tokens.items():
            assert self.table.length(seq) == len(tokens)
            pages = self.table.pages(seq, group)
            assert len(pages) == lane.geometry.pages_for(len(tokens))
            kept = [at for at, page in enumerate(pages) if page]
            assert kept == [*range(len(pages))] or lane.group.window
            rows.update(page for page in pages if page)
            for at in kept if seq != but else ():
                size = lane.geometry.page_size
                _compare(view[[pages[at]]], tokens[at * size : (at + 1) * size], group)
        retired = [entry for entry in self.oracle.retired if entry[1] == group]
        for _, _, page, tokens in retired:
            _compare(view[[page]], tokens, group)
        named = set()
        for entry, tokens in self.oracle.named.items():
            _compare(view[[entry[group]]], tokens, group)
            named.add(entry[group])
        assert sorted(named) == lane.holders.named
        for page in rows.keys() | named:
            assert lane.holders.writable(page) == (rows[page] == 1 and page not in named)
            assert lane.holders.idle(page) == (page not in rows)
        idle = len(named - rows.keys())
        used = 1 + len(rows) + idle + len(retired)
        blocked = lane.geometry.pages - used - lane.placement.open_pages
        assert blocked >= 0
        assert self.table.free_pages <= lane.geometry.pages - used or len(self.groups) > 1
        return len(rows), idle

    def _own_bytes(self, seq: int) -> int:
        total = 0
        for group, lane in enumerate(self.table.lanes):
            all_rows = [self.table.pages(other, group) for other in self.oracle.tokens]
            held = Counter(page for row in all_rows for page in row if page)
            own = sum(held[page] == 1 for page in self.table.pages(seq, group))
            total += own * lane.geometry.page_bytes
        return total

    def check_poison(self) -> None:
        """Every mapped page that is free is NaN throughout."""
        for lane, view in zip(self.table.lanes, self.views, strict=True):
            for chunk, (_, free) in lane.placement.held.items():
                for at, page in enumerate(lane.geometry.own_pages(chunk)):
                    if free >> at & 1:
                        assert view[page].isnan().all(), f"page {page} is free and can be read"

    def close(self) -> None:
        self.cache.close()

    # --- bytes -------------------------------------------------------------------------------

    def write(self, seq: int, start: int, payload: list[int]) -> None:
        size = self.cache.page_size
        for group, view in enumerate(self.views):
            pages = self.table.pages(seq, group)
            for position, value in enumerate(payload, start):
                if not pages[position // size]:
                    continue  # before the window
                view[pages[position // size], :, :, :, position % size] = value + group * OFFSET

    def _keep_retired(self, seq: int, rows: list[tuple[int, ...]]) -> None:
        """Note what the pages hold that `seq` has just left, if nobody else has them."""
        size, tokens = self.cache.page_size, self.oracle.tokens[seq]
        known = {entry[1:3] for entry in self.oracle.retired}
        for group, row in enumerate(rows):
            retired = {page for entry in self.table.retired for page in entry.pages[group]}
            for at, page in enumerate(row):
                if page in retired and (group, page) not in known:
                    content = tokens[at * size : (at + 1) * size]
                    self.oracle.retired.append((self.step, group, page, content))


def _compare(pages: torch.Tensor, tokens: list[int], group: int) -> None:
    """`pages`: [page, layer, k|v, head, slot, d]."""
    found = pages.movedim(4, 1).flatten(0, 1)[: len(tokens)].flatten(1) - group * OFFSET
    same = (found == torch.tensor(tokens, dtype=found.dtype)[:, None]).all(1)
    assert same.all(), f"token {int((~same).nonzero()[0])} of {tokens} reads otherwise"


def random_operation(model: Model, rng: random.Random, max_limit: int) -> None:
    """One operation, chosen at random."""
    seqs = sorted(model.oracle.tokens)
    low = model.cache.min_bytes // model.chunk
    operations: list[tuple[int, Callable[[], object]]] = [
        (4, lambda: model.add(rng.randint(0, 30))),
        (1, model.idle),
        (3, model.end_step),
        (1, lambda: model.set_limit(rng.randint(low, max_limit))),
    ]
    if seqs:
        one = rng.choice(seqs)
        some = rng.sample(seqs, rng.randint(1, len(seqs)))
        length = len(model.oracle.tokens[one])
        fenced = rng.random() < 0.5
        operations += [
            (8, lambda: model.grow({seq: rng.randint(0, 6) for seq in some})),
            (5, lambda: model.fork(one)),
            (2, lambda: model.truncate(one, rng.randint(0, length), fenced=fenced)),
            (1, lambda: model.pick(one, *some_of(length, rng), fenced=fenced)),
            (6, lambda: model.free(one, fenced=fenced)),
            (1, lambda: model.replace(one, rng.randint(1, 30))),
            (1, lambda: model.plan_and_forget(one)),
            (3, lambda: model.pack(rng.randint(0, 6), some[: rng.randint(0, 2)])),
        ]
        full = length // model.cache.page_size
        operations.append((2, lambda: model.name(one, rng.randint(0, full))))
    if named := sorted(model.oracle.named):
        pages = rng.sample(named, rng.randint(1, len(named)))
        operations += [
            (3, lambda: model.attach(pages)),
            (4, lambda: model.forget(pages[: rng.randint(0, 9)])),
            (2, lambda: model.fetch(pages[: rng.randint(0, 9)], rng.randint(0, 9))),
        ]
    weights = [weight for weight, _ in operations]
    rng.choices(operations, weights)[0][1]()


def some_of(length: int, rng: random.Random) -> tuple[int, list[int]]:
    """A slot among the last of a sequence, and some of those from it on."""
    start = max(0, length - rng.randint(0, 12))
    return start, [slot for slot in range(start, length) if rng.random() < 0.6]
