"""Where a sequence can resume with pages that are outside the device, beside those on it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.holders import PageRow
from kvrt.kv.pages.lanes import Pages, Rows
from kvrt.kv.tiers.names import PageName, StoredName


class Fetches(NamedTuple):
    """What a sequence waits for, to resume at a border between pages.

    Args:
        border: so many pages of its tokens it has then.
        rows: of each group of layers, pages on the device that it holds meanwhile: those that it
            needs there, and those of the border at which it can resume in any case.
        places: of each group, which of its pages come from outside.
    """

    border: int
    rows: Rows
    places: Pages

    def names(self, names: Sequence[PageName]) -> list[tuple[int, StoredName]]:
        """The pages that come, each with its place, the first of the tokens first.

        Args:
            names: of the sequence's pages.
        """
        places = [(at, group) for group, own in enumerate(self.places) for at in own]
        return [(at, StoredName(names[at], group)) for at, group in sorted(places)]


def fetches(
    groups: Sequence[Group],
    names: Sequence[PageName],
    rows: Rows,
    start: int,
    stored: Callable[[StoredName], bool],
) -> Fetches | None:
    """The last border at which all groups can resume, with what is on the device and outside.

    Args:
        groups: of layers.
        names: of the sequence's pages.
        rows: of each group, pages on the device that hold what the names say; 0: not there.
        start: the last border at which the device alone is enough.
        stored: whether a page is outside the device.

    Returns:
        None if that border is not behind `start`.
    """
    full = [at for at, group in enumerate(groups) if not group.window]
    here = min([_filled(rows[at]) for at in full], default=len(rows[0]))
    on_device = [row[:here].tolist() for row in rows]

    def there(group: int, at: int) -> bool:
        there = at < here and on_device[group][at]
        return bool(there) or stored(StoredName(names[at], group))

    border = len(names)
    if full:
        lacking = (at for at in range(start, border) if not all(there(g, at) for g in full))
        border = next(lacking, border)
    size = groups[0].geometry.page_size
    while border > start and (
        lacks := [
            at
            for each, group in enumerate(groups)
            if group.window
            for part in group.kept(border * size)
            if (at := next((at for at in part if not there(each, at)), None)) is not None
        ]
    ):
        border = min(lacks)  # one between the two would need that page as well
    if border <= start:
        return None
    held, places = list[PageRow](), list[tuple[int, ...]]()
    for group, row in zip(groups, rows, strict=True):
        needed = np.zeros(border, bool)
        for part in group.kept(border * size):
            needed[part.start : part.stop] = True
        own = row[: min(here, border)]
        lacking_here = needed.copy()
        lacking_here[: len(own)] &= own == 0
        places.append(tuple(np.flatnonzero(lacking_here).tolist()))
        for part in group.kept(start * size):
            needed[part.start : part.stop] = True
        held.append(np.where(needed[: len(own)], own, 0).astype(np.int32))
    return Fetches(border, tuple(held), tuple(places))


def _filled(row: PageRow) -> int:
    """How many pages are there before the first that is not."""
    return len(row) if row.all() else int(row.argmin())
