"""Where in the KV memory pages are, to be drawn: how full each part of each group's span is."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvrt.kv.pages.holders import PageRow
from kvrt.kv.pages.lanes import Lane, SeqId
from kvrt.kv.pages.table import PageTable


@dataclass(frozen=True, slots=True)
class Cell:
    """Neighbouring chunks.

    Args:
        mapped: how many of them are.
        used: pages that begin in them and that sequences hold.
        cached: pages that are kept for prompts to come, alone.
        open: pages that can be handed out.
    """

    mapped: int
    used: int
    cached: int
    open: int


@dataclass(frozen=True, slots=True)
class Owned:
    """Pages that the sequences of one owner hold, those that they share once.

    Args:
        owner: whose.
        used: pages.
        cells: of each cell, those that begin in it.
    """

    owner: str
    used: int
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupPicture:
    """The span of one group of layers.

    Args:
        window: its layers see so many tokens back; 0: all.
        page_bytes: of a page.
        used: pages that sequences hold, or that wait for the end of a step.
        cached: pages that are kept for prompts to come, alone.
        mapped_chunks: of physical memory.
        cell_chunks: chunks that a cell has.
        cells: from the beginning of the span to the last chunk that is mapped.
        owners: whose the pages are that sequences hold, if that was asked; the largest first.
    """

    window: int
    page_bytes: int
    used: int
    cached: int
    mapped_chunks: int
    cell_chunks: int
    cells: tuple[Cell, ...]
    owners: tuple[Owned, ...] = ()


OwnerOf = Callable[[SeqId], str | None]
"""Whose a sequence is; None: it has ended."""


def picture_of(
    table: PageTable, cells: int, owner_of: OwnerOf | None = None
) -> tuple[GroupPicture, ...]:
    """Of each group, at most so many cells. From any thread: a table is a value.

    Args:
        owner_of: whose pages are told, too.
    """
    seqs: dict[str, list[SeqId]] = defaultdict(list)
    for seq in () if owner_of is None else table.sequences:
        if owner_of is not None and (owner := owner_of(seq)) is not None:
            seqs[owner].append(seq)
    return tuple(
        _of_lane(lane, cells, {
            owner: [lane.held(table.rows_of(seq)[number]) for seq in own]
            for owner, own in seqs.items()
        })
        for number, lane in enumerate(table.lanes)
    )  # fmt: skip


def _of_lane(lane: Lane, most: int, rows: dict[str, list[PageRow]]) -> GroupPicture:
    placement, geometry = lane.placement, lane.geometry
    chunks = placement.mapped.bit_length()
    width = max(1, -(-chunks // most))
    count = -(-chunks // width)
    counts = lane.holders.counts
    pages = np.arange(len(counts), dtype=np.int64)
    places = pages * geometry.page_bytes // (geometry.chunk_bytes * width)

    def by_cell(pages: "np.ndarray[tuple[int], np.dtype[Any]]") -> list[int]:
        found: list[int] = np.bincount(places[pages], minlength=count).tolist()
        return found

    owned = []
    for owner, own in rows.items():
        held = np.unique(np.concatenate(own))
        owned.append(Owned(owner, len(held), tuple(by_cell(held))))

    cached = by_cell(counts == 1)
    mapped, opened = [0] * count, [0] * count
    for chunk, (_, free) in placement.held.items():
        cell = chunk // width
        mapped[cell] += 1
        opened[cell] += free.bit_count()
    cells = map(Cell, mapped, by_cell(counts > 1), cached, opened)
    used = placement.used_pages - 1 - lane.holders.cached
    return GroupPicture(
        lane.group.window, geometry.page_bytes, used, lane.holders.cached,
        placement.mapped_chunks, width, tuple(cells),
        tuple(sorted(owned, key=lambda each: (-each.used, each.owner))),
    )  # fmt: skip
