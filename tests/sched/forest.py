"""Sequences that begin alike come, grow and end, beside a note of what each page holds."""

import random
from collections import Counter
from collections.abc import Sequence

from kvrt.kv.index.eviction import LeastRecentlyUsed
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.pages.table import Change
from kvrt.kv.seq import Seq

from .test_batching import PAGE, Windows, table_of

Tokens = tuple[int, ...]


def positions_seen(group: Group, length: int) -> set[int]:
    """What tokens from position `length` on see of those before it."""
    return {
        at
        for at in range(length)
        if not group.window or at < group.sinks or at > length - group.window
    }


class Forest:
    """An engine without a device that names, finds and evicts, and preempts nobody.

    Args:
        rng: what comes and goes.
        windows: of each group of layers.
        chunks: of memory.
        roots: of tenants.
    """

    def __init__(
        self,
        rng: random.Random,
        windows: Windows,
        chunks: int = 60,
        roots: Sequence[bytes] = (b"root" * 8,),
    ) -> None:
        self.roots = roots
        self.rng = rng
        self.table = table_of(chunks, windows)
        self.now = 0
        self.reuse = PrefixReuse(
            self.table.groups, LeastRecentlyUsed(), now=lambda: float(self.now)
        )
        self.index = self.reuse.index
        self.seqs: dict[Seq, None] = {}
        self.prompts: list[list[int]] = [[]]
        self.seen: Counter[str] = Counter()
        self._holds: list[dict[int, Tokens]] = [{} for _ in windows]
        self._ids = 0

    # --- what happens ------------------------------------------------------------------------

    def step(self) -> None:
        self.now += 1
        if len(self.seqs) < 4 or self.rng.random() < 0.1:
            self.begin()
        for seq in [*self.seqs]:
            if self.rng.random() < 0.8:
                self.grow(seq)
            elif self.rng.random() < 0.4:
                self.end(seq)

    def begin(self) -> None:
        rng, self._ids = self.rng, self._ids + 1
        known = rng.choice(self.prompts)
        tokens = known[: rng.choice([len(known), rng.randint(0, len(known))])]
        tokens = tokens + [rng.randrange(3) for _ in range(rng.randint(1, 30))]
        self.prompts = [*self.prompts[-20:], tokens]
        root = self.roots[self._ids % len(self.roots)]
        seq = Seq(id=self._ids, tokens=tokens, prompt_len=len(tokens), max_len=99, root=root)
        rows = self.reuse.match(seq)
        self.table = self.table.attach(seq.id, rows).table
        seq.computed = len(rows[0]) * PAGE
        self.reuse.begin(seq, rows, len(rows[0]))
        self.seen["hit"] += bool(seq.computed)
        self.seqs[seq] = None

    def grow(self, seq: Seq) -> None:
        """Some of its tokens are computed, and named at once or when more are in the table."""
        begun = self.table.length(seq.id)
        count = min(self.rng.randint(1, 11), len(seq.tokens) - begun)
        grown = self.table.grow({seq.id: count})
        if not isinstance(grown, Change):
            self.evict(2 * self.table.page_bytes)
            return
        self.table = grown.table
        self.reuse.idled(grown.idled)
        for holds, row in zip(self._holds, self.table.rows_of(seq.id), strict=True):
            for at in range(begun // PAGE, len(row)):
                holds[row.item(at)] = tuple(seq.tokens[: (at + 1) * PAGE])
        seq.computed = self.rng.choice([begun, begun + count])
        lacking = [entry for entry in self.index if not all(entry.pages)]
        if named := self.reuse.computed(seq, self.table.rows_of(seq.id)):
            self.table = self.table.name(named).table
        self.seen["filled"] += any(all(entry.pages) for entry in lacking)

    def end(self, seq: Seq) -> None:
        self.reuse.end(seq)
        change = self.table.free(seq.id)
        self.table = change.table
        self.reuse.idled(change.idled)
        del self.seqs[seq]

    def evict(self, nbytes: int) -> Pages:
        pages = self.reuse.in_order().take(self.table, nbytes)
        self.table = self.table.forget(pages).table
        self.reuse.dropped(pages)
        self.seen["evicted"] += any(pages)
        self.seen["links"] += any(not all(entry.pages) for entry in self.index)
        return pages

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """The index knows the pages that the table says it holds, finds what there is, and can give
        up all that no sequence holds."""
        check_table(self.table)
        for group, lane in enumerate(self.table.lanes):
            indexed = [entry.pages[group] for entry in self.index if entry.pages[group]]
            assert sorted(indexed) == lane.holders.named
        evicted = self.table.forget(self.reuse.in_order().take(self.table, self.table.idle_bytes))
        assert evicted.table.idle_pages == 0
        for tokens in (*self.prompts, self.rng.choices(range(3), k=20)):
            self.check_match(tokens, ((),) * len(self.table.lanes))
            self.check_match(tokens, self.reuse.in_order().take(self.table, 4096))

    def check_match(self, tokens: list[int], without: Pages) -> None:
        """What is found of a prompt is what looking for each border finds, page by page."""
        seq = Seq(id=0, tokens=[*tokens, 0], prompt_len=0, max_len=99, root=b"root" * 8)
        rows = self.reuse.match(seq, without)
        borders = range(len(tokens) // PAGE, 0, -1)
        right = next((each for each in borders if self._resumes(tokens, each, without)), 0)
        assert {len(row) for row in rows} == {right}
        for group, row in enumerate(rows):
            needed = self._needed(group, right)
            for at, page in enumerate(row.tolist()):
                assert bool(page) == (at in needed)
                if page:
                    assert page in self._there(group, tuple(tokens[: (at + 1) * PAGE]), without)

    def _resumes(self, tokens: list[int], border: int, without: Pages) -> bool:
        return all(
            self._there(group, tuple(tokens[: (at + 1) * PAGE]), without)
            for group in range(len(self.table.lanes))
            for at in self._needed(group, border)
        )

    def _needed(self, group: int, border: int) -> set[int]:
        seen = positions_seen(self.table.lanes[group].group, border * PAGE)
        return {position // PAGE for position in seen}

    def _there(self, group: int, tokens: Tokens, without: Pages) -> set[int]:
        """The pages that hold the last of these tokens after those before them, and have a name."""
        named, gone = self.table.lanes[group].holders.named, without[group]
        holds = self._holds[group]
        return {page for page in named if page not in gone and holds[page] == tokens}
