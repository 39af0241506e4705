"""A picture of the KV memory has every page in its place."""

import random
from collections import Counter

import pytest

from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.picture import picture_of

from .shapes import LAYERS, done, empty


def owner_of(seq: object) -> str | None:
    """One of three; or it has just ended."""
    return ("alice", "bob", None)[int(str(seq)[1:]) % 3]


def counted(table: PageTable, width: int) -> tuple[Counter[int], Counter[int], Counter[int]]:
    """By cell, from the rows and the names alone: pages in rows, cached ones, mapped chunks."""
    (lane,) = table.lanes
    geometry = lane.geometry

    def cells(pages: set[int]) -> Counter[int]:
        owners = (geometry.chunks_of(page).start for page in pages)
        return Counter(owner // width for owner in owners)

    held = {page for seq in table.sequences for page in table.pages(seq)}
    cached = {page for page in lane.holders.named if page not in held}
    mapped = Counter(chunk // width for chunk in lane.placement.held)
    return cells(held), cells(cached), mapped


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("most", [1, 3, 512])
def test_after_any_operations_every_page_is_in_its_cell(name: str, most: int) -> None:
    rng = random.Random(most)
    table = empty(name)
    for number in range(60):
        live = sorted(table.sequences)
        change: object
        match rng.randrange(4) if live else 0:
            case 0:
                change = table.grow({f"s{number}": rng.randrange(1, 30)})
            case 1:
                change = table.free(rng.choice(live))
            case 2:
                change = table.fork(rng.choice(live), f"s{number}")
            case _:
                full = [p for p in table.pages(rng.choice(live))[:-1]
                        if not table.lanes[0].holders.has_name(p)]  # fmt: skip
                change = table.name((tuple(full),))
        if isinstance(change, Change):
            table = done(change)
        (group,) = picture_of(table, most, owner_of)
        held, cached, mapped = counted(table, group.cell_chunks)
        assert len(group.cells) <= most
        for place, cell in enumerate(group.cells):
            expected = (mapped[place], held[place], cached[place])
            assert (cell.mapped, cell.used, cell.cached) == expected
        assert sum(cell.open for cell in group.cells) == table.lanes[0].placement.open_pages
        assert sum(mapped.values()) == group.mapped_chunks
        assert (group.used, group.cached) == (table.used_pages, table.idle_pages)
        for owned in group.owners:
            own = {p for s in table.sequences if owner_of(s) == owned.owner for p in table.pages(s)}
            chunks = (table.lanes[0].geometry.chunks_of(page).start for page in own)
            places = Counter(chunk // group.cell_chunks for chunk in chunks)
            assert owned.used == len(own)
            assert owned.cells == tuple(places[place] for place in range(len(group.cells)))
        assert {each.owner for each in group.owners} == {
            owner_of(seq) for seq in table.sequences
        } - {None}
        assert picture_of(table, most)[0].owners == ()
