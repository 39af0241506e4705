"""Where sequences resume with pages outside the device is what looking at each border finds."""

import random
from collections import Counter

import pytest

from kvrt.kv.index.outside import Fetches
from kvrt.kv.pages.group import last_border
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Pages, Rows
from kvrt.kv.pages.table import Change
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import StoredName, chain

from .forest import Forest
from .test_batching import GROUPS, PAGE, Windows

ROOT = b"root" * 8


class Stored(Forest):
    """A forest whose pages are somewhere else when they are given up, most of them."""

    def __init__(self, rng: random.Random, windows: Windows) -> None:
        super().__init__(rng, windows)
        self.stored: dict[StoredName, None] = {}
        self.reuse.tiers = self.stored

    def evict(self, nbytes: int) -> Pages:
        pages = self.reuse.in_order().take(self.table, nbytes)
        leaving = self.reuse.leaving(pages)
        self.stored.update((name, None) for name, _ in leaving if self.rng.random() < 0.9)
        self.seen["useless"] += sum(map(len, pages)) - len(leaving)
        return super().evict(nbytes)

    def lose(self) -> None:
        """Somebody else loses a page."""
        if self.stored and self.rng.random() < 0.3:
            del self.stored[self.rng.choice([*self.stored])]

    def check_prompt(self, tokens: list[int]) -> None:
        seq = Seq(id=0, tokens=[*tokens, 0], prompt_len=0, max_len=99, root=ROOT)
        without = self.reuse.in_order().take(self.table, self.rng.choice([0, 2048]))
        cached = self.reuse.match(seq, without)
        start = len(cached[0])
        found = self.reuse.stored(seq, start, without)
        names = [StoredName(*n) for n in self._all(chain(ROOT, tokens, PAGE))]
        device = {
            name: min(there)
            for name in names
            if (there := self._there(name.group, self._upto(tokens, name), without))
        }
        borders = range(len(tokens) // PAGE, start, -1)
        right = next((b for b in borders if self._enough(tokens, b, {*device, *self.stored})), None)
        assert (found is None) == (right is None)
        if found is None:
            return
        assert found.border == right
        needed = self._names(tokens, found.border)
        coming = [name for _, name in found.names(seq.names)]
        assert {*coming} == needed - device.keys()
        assert len({*coming}) == len(coming)
        held = {name: page for name in names if (page := self._held(found.rows, tokens, name))}
        assert held.keys() == (needed | self._names(tokens, start)) & device.keys()
        self.seen["found"] += 1
        self.seen["some here"] += bool(needed & device.keys() - self._names(tokens, start))
        self.check_every_failure(tokens, start, found, {*held}, coming)

    def check_every_failure(
        self, tokens: list[int], start: int, found: Fetches, held: set[StoredName],
        coming: list[StoredName],
    ) -> None:  # fmt: skip
        """However many of the pages come, the sequence goes on where all groups can."""
        table = self.table.attach(0, found.rows).table
        filled = table.fill(0, found.border, found.places)
        if not isinstance(filled, Change):
            self.seen["no room"] += 1
            return
        check_table(filled.table)
        assert filled.table.length(0) == found.border * PAGE
        for row, places in zip(filled.table.rows_of(0), found.places, strict=True):
            assert all(row[[*places]])
        for arrived in range(len(coming) + 1):
            rows = [row.copy() for row in filled.table.rows_of(0)]
            for name in coming[arrived:]:
                rows[name.group][self._at(tokens, name)] = 0
            border = last_border(filled.table.groups, rows, found.border)
            there = {*held, *coming[:arrived]}
            borders = range(found.border, -1, -1)
            assert border == next(b for b in borders if self._enough(tokens, b, there))
            assert border >= start
            cut = filled.table.truncate(0, border * PAGE)
            check_table(cut.table)
            self.seen["falls between"] += start < border < found.border
            self.seen["falls back"] += border == start

    # --- what the tokens say -----------------------------------------------------------------

    def _all(self, pages: object) -> list[tuple[object, int]]:
        return [(page, group) for page in pages for group in range(len(self.table.lanes))]  # type: ignore[attr-defined]

    def _at(self, tokens: list[int], name: StoredName) -> int:
        return list(chain(ROOT, tokens, PAGE)).index(name.page)

    def _upto(self, tokens: list[int], name: StoredName) -> tuple[int, ...]:
        return tuple(tokens[: (self._at(tokens, name) + 1) * PAGE])

    def _names(self, tokens: list[int], border: int) -> set[StoredName]:
        """What all groups need there."""
        pages = list(chain(ROOT, tokens, PAGE))
        return {
            StoredName(pages[at], group)
            for group in range(len(self.table.lanes))
            for at in self._needed(group, border)
        }

    def _enough(self, tokens: list[int], border: int, there: set[StoredName]) -> bool:
        return self._names(tokens, border) <= there

    def _held(self, rows: Rows, tokens: list[int], name: StoredName) -> int:
        at = self._at(tokens, name)
        return rows[name.group].item(at) if at < len(rows[name.group]) else 0


@pytest.mark.parametrize("groups", GROUPS)
def test_a_sequence_resumes_at_the_last_border_where_all_groups_can(groups: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(8):
        forest = Stored(random.Random(seed), GROUPS[groups])
        for _ in range(60):
            forest.step()
            forest.lose()
            if forest.rng.random() < 0.3:
                forest.evict(forest.rng.choice([1024, 8192]))
            if forest.rng.random() < 0.3:
                forest.check_prompt(forest.rng.choice(forest.prompts))
        seen += forest.seen
    assert min(seen["found"], seen["falls back"]) > 5, seen
    if groups == "full":
        assert seen["falls between"] > 5, seen
    else:
        assert seen["useless"] > 5, seen
        assert seen["some here"] > 0, seen
