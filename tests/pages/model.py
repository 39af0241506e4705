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
import torch

from kvrt.kv.cache import KVCache
from kvrt.kv.pages.apply import Failed
from kvrt.kv.pages.change import Change, Shortage
from kvrt.kv.pages.holders import Holders
from kvrt.kv.pages.table import PageTable
from kvrt.spi import Device

from .shapes import layout, shape


@dataclass
class Oracle:
    """What must be in the cache.

    Args:
        tokens: of each sequence.
        named: tokens in each page that an index would hold.
        retired: step, page and tokens in it, of pages that a step in flight may read.
    """

    tokens: dict[int, list[int]] = field(default_factory=dict)
    named: dict[int, list[int]] = field(default_factory=dict)
    retired: list[tuple[int, int, list[int]]] = field(default_factory=list)


class Model:
    """Drives a `KVCache` and an `Oracle` at once.

    Args:
        device: any real one.
        kind: of pages; see `shapes`.
        chunks: that they lie over.
        limit: in chunks.
        keep_warm: in chunks.
    """

    def __init__(
        self, device: Device, kind: str, *, chunks: int = 24, limit: int, keep_warm: int
    ) -> None:
        chunk = device.info.granularity
        self.keep_warm = keep_warm
        self.cache = KVCache(
            device,
            layout(kind, chunk_bytes=chunk),
            shape(kind, chunks=chunks, chunk_bytes=chunk).pages,
            limit_bytes=limit * chunk,
            keep_warm_bytes=keep_warm * chunk,
            poison=True,
        )
        self.geometry = geometry = self.cache.geometry
        self.oracle = Oracle()
        self.step = 0
        self.shortages = 0
        self._ids = itertools.count(1)
        self._payload = itertools.count(1)
        kv = self.cache.batch([], []).kv
        form = self.cache.layout
        self.view = torch.as_strided(  # [page, layer, k|v, head, slot, d]
            kv,
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

    @property
    def table(self) -> PageTable:
        return self.cache.table

    @property
    def held(self) -> int:
        """Chunks of memory that are held."""
        stats = self.cache.stats()
        return (stats.mapped_bytes + stats.pooled_bytes) // self.geometry.chunk_bytes

    @property
    def needed(self) -> int:
        """Chunks that hold something."""
        return self.table.mapped_chunks - self.table.warm_chunks

    # --- operations --------------------------------------------------------------------------

    def commit(self, change: Change) -> None:
        failed = self.cache.commit(change)
        assert not isinstance(failed, Failed), failed.error
        for page in change.dropped:
            del self.oracle.named[page]

    def grow(self, tokens: dict[int, int]) -> bool:
        before = self.table
        change = before.grow(tokens)
        if isinstance(change, Shortage):
            self.shortages += 1
            assert self.table is before
            assert before.free_pages <= change.free < change.needed
            return False
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
        row = self.table.pages(seq)
        self.commit(self.table.truncate(seq, length, after=self.step if fenced else None))
        self._keep_retired(seq, row)
        del self.oracle.tokens[seq][length:]

    def pick(self, seq: int, start: int, picked: list[int], *, fenced: bool) -> None:
        """Does nothing if somebody else holds what would be written."""
        row, tokens = self.table.pages(seq), self.oracle.tokens[seq]
        others = [page for other in self.oracle.tokens for page in self.table.pages(other)]
        if any(
            others.count(page) > 1 or page in self.oracle.named
            for page in row[start // self.geometry.page_size :]
        ):
            return
        self.commit(self.table.pick(seq, start, picked, after=self.step if fenced else None))
        self._keep_retired(seq, row)
        tokens[start:] = [tokens[slot] for slot in picked]

    def free(self, seq: int, *, fenced: bool) -> None:
        row = self.table.pages(seq)
        self.commit(self.table.free(seq, after=self.step if fenced else None))
        self._keep_retired(seq, row)
        del self.oracle.tokens[seq]

    def name(self, seq: int, pages: int) -> None:
        """An index takes the first pages of a sequence, those that it does not hold."""
        row, tokens, size = self.table.pages(seq), self.oracle.tokens[seq], self.geometry.page_size
        new = [at for at, page in enumerate(row[:pages]) if page not in self.oracle.named]
        self.commit(self.table.name([row[at] for at in new]))
        for at in new:
            self.oracle.named[row[at]] = tokens[at * size : (at + 1) * size]

    def attach(self, pages: list[int]) -> None:
        """A new sequence begins with pages that have names."""
        seq = next(self._ids)
        self.commit(self.table.attach(seq, np.array(pages, np.int32)))
        self.oracle.tokens[seq] = [t for page in pages for t in self.oracle.named[page]]

    def forget(self, pages: list[int]) -> None:
        """The index gives pages up, in use or not."""
        self.commit(self.table.forget(pages))

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
        self.cache.set_memory_limit(chunks * self.geometry.chunk_bytes)

    def empty(self) -> None:
        """Free everything: nothing may be left."""
        for seq in list(self.oracle.tokens):
            self.free(seq, fenced=bool(seq % 2))
        self.forget([*self.oracle.named])
        self.end_step()
        self.idle()
        self.check()
        assert self.table.used_pages == self.table.retired_pages == 0
        assert self.table.placement.used_pages == 1, "the null page"
        assert self.table.holders == Holders.none()

    # --- comparing ---------------------------------------------------------------------------

    def check(self, *, every_byte: bool = False, but: int | None = None) -> None:
        """Compare; of each head's vector only the two ends, if not `every_byte`.

        `but`: a sequence whose bytes are not looked at.
        """
        view = self.view if every_byte else self.view[..., :: self.cache.layout.head_dim - 1]
        self.cache.check_integrity()
        table = self.table
        assert set(table.sequences) == set(self.oracle.tokens)
        held = set()
        for seq, tokens in self.oracle.tokens.items():
            assert table.length(seq) == len(tokens)
            pages = table.pages(seq)
            assert len(pages) == self.geometry.pages_for(len(tokens))
            assert 0 not in pages
            held.update(pages)
            if seq != but:
                _compare(view[list(pages)], tokens)
        assert table.retired_pages == len(self.oracle.retired)
        for _, page, tokens in self.oracle.retired:
            _compare(view[[page]], tokens)
        for page, tokens in self.oracle.named.items():
            _compare(view[[page]], tokens)
        named = self.oracle.named.keys()
        assert sorted(named) == table.holders.named
        assert table.used_pages == len(held)
        assert table.idle_pages == len(named - held)
        rows = Counter(page for seq in self.oracle.tokens for page in table.pages(seq))
        for page in held | named:
            assert table.holders.writable(page) == (rows[page] == 1 and page not in named)
            assert table.holders.idle(page) == (page not in held)
        for seq in self.oracle.tokens:
            own = sum(rows[page] == 1 for page in table.pages(seq))
            assert table.own_pages(seq) == own
        used = 1 + table.idle_pages + table.used_pages + table.retired_pages
        blocked = self.geometry.pages - used - table.placement.open_pages
        assert blocked >= 0
        assert table.free_pages <= table.placement.open_pages + blocked

    def check_poison(self) -> None:
        """Every mapped page that is free is NaN throughout."""
        placement = self.table.placement
        for chunk, (_, free) in placement.held.items():
            for at, page in enumerate(self.geometry.own_pages(chunk)):
                if free >> at & 1:
                    assert self.view[page].isnan().all(), f"page {page} is free and can be read"

    def close(self) -> None:
        self.cache.close()

    # --- bytes -------------------------------------------------------------------------------

    def write(self, seq: int, start: int, payload: list[int]) -> None:
        pages, size = self.table.pages(seq), self.geometry.page_size
        for position, value in enumerate(payload, start):
            self.view[pages[position // size], :, :, :, position % size] = value

    def _keep_retired(self, seq: int, row: tuple[int, ...]) -> None:
        """Note what the pages hold that `seq` has just left, if nobody else has them."""
        size, tokens = self.geometry.page_size, self.oracle.tokens[seq]
        known = {page for _, page, _ in self.oracle.retired}
        retired = {page for entry in self.table.retired for page in entry.pages} - known
        for at, page in enumerate(row):
            if page in retired:
                content = tokens[at * size : (at + 1) * size]
                self.oracle.retired.append((self.step, page, content))


def _compare(pages: torch.Tensor, tokens: list[int]) -> None:
    """`pages`: [page, layer, k|v, head, slot, d]."""
    found = pages.movedim(4, 1).flatten(0, 1)[: len(tokens)].flatten(1)
    same = (found == torch.tensor(tokens, dtype=found.dtype)[:, None]).all(1)
    assert same.all(), f"token {int((~same).nonzero()[0])} of {tokens} reads otherwise"


def random_operation(model: Model, rng: random.Random, max_limit: int) -> None:
    """One operation, chosen at random."""
    seqs = sorted(model.oracle.tokens)
    low = model.geometry.min_chunks
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
        ]
        full = length // model.geometry.page_size
        operations.append((2, lambda: model.name(one, rng.randint(0, full))))
    if named := sorted(model.oracle.named):
        pages = rng.sample(named, rng.randint(1, len(named)))
        operations += [
            (3, lambda: model.attach(pages)),
            (4, lambda: model.forget(pages[: rng.randint(0, 9)])),
        ]
    weights = [weight for weight, _ in operations]
    rng.choices(operations, weights)[0][1]()


def some_of(length: int, rng: random.Random) -> tuple[int, list[int]]:
    """A slot among the last of a sequence, and some of those from it on."""
    start = max(0, length - rng.randint(0, 12))
    return start, [slot for slot in range(start, length) if rng.random() < 0.6]
