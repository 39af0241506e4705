"""A group of layers: they keep memory alike, in pages of one size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.holders import PageRow


@dataclass(frozen=True, slots=True)
class Group:
    """What a page table knows of some layers.

        pages      0     1     2     3     4     5         page_size 4, window 9, sinks 3
        kept       #                 #     #     #         of a sequence of 21 tokens: the token at
        positions  0-3               12-15       20        position 21 sees those from 13 on

    Args:
        geometry: their pages, over chunks.
        window: a token sees only the last `window` positions, its own included; 0: all.
        sinks: first positions that are seen as well.
    """

    geometry: Geometry
    window: int = 0
    sinks: int = 0

    def kept(self, length: int) -> tuple[range, range]:
        """The pages that tokens from position `length` on need of those before it: some of the
        first ones, and all from one on."""
        geometry = self.geometry
        end = geometry.pages_for(length)
        if not self.window:
            return range(0), range(end)
        first = max(0, length - self.window + 1) // geometry.page_size
        return range(min(geometry.pages_for(self.sinks), first)), range(first, end)

    def most(self, length: int, step: int) -> int:
        """Pages that a sequence has at most until it is so long, if it grows by up to `step` tokens
        at once."""
        geometry = self.geometry
        pages = geometry.pages_for(length)
        if not self.window:
            return pages
        seen = geometry.pages_for(self.window - 1 + step) + 1
        return min(pages, geometry.pages_for(self.sinks) + seen)


def chunks_alone(groups: Iterable[Group], length: int, step: int) -> int:
    """Chunks under what one sequence needs of each group until it is so long, and under their null
    pages, if it grows by up to `step` tokens at once and has all of them for itself."""
    return sum(group.geometry.chunks_of(group.most(length, step)).stop for group in groups)


def last_border(groups: Sequence[Group], rows: Sequence[PageRow], border: int) -> int:
    """The last border between pages, up to a `border`, at which all groups have what they need.

    Args:
        groups: of layers.
        rows: of each group, 0 where a page is not there.
        border: pages that come before it.
    """
    while (lacking := _lacking(groups, rows, border)) is not None:
        border = lacking  # a border between the two would need that page as well
    return border


def _lacking(groups: Sequence[Group], rows: Sequence[PageRow], border: int) -> int | None:
    """The first page that some group needs at a border and that is not there."""
    length = border * groups[0].geometry.page_size
    for group, row in zip(groups, rows, strict=True):
        for needed in group.kept(length):
            part = row[needed.start : needed.stop]
            if not part.all():
                return needed.start + int(part.argmin())
    return None
