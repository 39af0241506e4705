"""What a model sees in a step: the states of images, and positions that images shift."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kvrt.kv.tiers.media import Medium
from kvrt.model.decoder.seen import Seen, Turns
from kvrt.model.loader import Model
from kvrt.model.vision.pixels import Picture
from kvrt.sched.plan import Row


class Sight:
    """Belongs to the engine's thread.

    Args:
        model: that may see.
    """

    def __init__(self, model: Model) -> None:
        self._vision = None if isinstance(model.vision, str) else model.vision
        channels = () if self._vision is None else self._vision.spec.channels
        self._channels = np.array(channels, np.int64)

    def seen(self, rows: Sequence[Row]) -> list[Seen]:
        """Of the tokens of some rows, those with something in place of their embeddings."""
        seen: list[Seen] = []
        if self._vision is None:
            return seen
        first = 0
        for row in rows:
            for medium in row.seq.media:
                start, stop = max(medium.start, row.start), min(medium.stop, row.start + row.count)
                if start < stop:
                    states = self._vision.states(_picture(medium))
                    part = states[start - medium.start : stop - medium.start]
                    seen.append(Seen(first + start - row.start, part, medium.together))
            first += row.count
        return seen

    def turns(self, rows: Sequence[Row]) -> Turns | None:
        """How their positions differ from those of a text; None: they do not."""
        if not self._channels.size or not any(row.seq.media for row in rows):
            return None
        shifts = [shifts_of(row.seq.media, row.start, row.count) for row in rows]
        return Turns(np.concatenate(shifts, 1), self._channels)


def shifts_of(media: Sequence[Medium], start: int, count: int) -> NDArray[np.int64]:
    """What tokens ``[start, start + count)`` of a sequence have added to their places, to be their
    positions in the text, by row and by column: int64 [3, count].

    An image takes as many positions as the longer of its sides has states: in the text all of it
    stands where it begins, and by row and column further on (Wang et al. 2024, arXiv 2409.12191).
    """
    places = np.arange(start, start + count)
    found = np.zeros((3, count), np.int64)
    behind = 0
    for medium in media:
        rows, columns = _picture(medium).grid
        inside = (places >= medium.start) & (places < medium.stop)
        at = places[inside] - medium.start
        found[:, inside] = np.stack((0 * at, at // columns, at % columns)) - at - behind
        behind += medium.count - max(rows, columns)
        found[:, places >= medium.stop] = -behind
    return found


def _picture(medium: Medium) -> Picture:
    return cast(Picture, medium.content)
