"""Where in the KV memory pages are, to be drawn: how full each part of each group's span is."""

from dataclasses import dataclass

import numpy as np

from kvrt.kv.pages.lanes import Lane
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
    """

    window: int
    page_bytes: int
    used: int
    cached: int
    mapped_chunks: int
    cell_chunks: int
    cells: tuple[Cell, ...]


def picture_of(table: PageTable, cells: int) -> tuple[GroupPicture, ...]:
    """Of each group, at most so many cells. From any thread: a table is a value."""
    return tuple(_of_lane(lane, cells) for lane in table.lanes)


def _of_lane(lane: Lane, most: int) -> GroupPicture:
    placement, geometry = lane.placement, lane.geometry
    chunks = placement.mapped.bit_length()
    width = max(1, -(-chunks // most))
    count = -(-chunks // width)
    counts = lane.holders.counts
    pages = np.arange(len(counts), dtype=np.int64)
    owners = pages * geometry.page_bytes // (geometry.chunk_bytes * width)

    def by_cell(pages: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[int]:
        found: list[int] = np.bincount(owners[pages], minlength=count).tolist()
        return found

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
    )  # fmt: skip
