"""What stands in a sequence in place of tokens' own embeddings, as an image does."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Medium:
    """Tokens whose keys and values depend on what stands in their place.

    Args:
        start: the first of them.
        count: how many they are.
        digest: 32 bytes, which all that stands there follows from.
        together: they see each other, those that come later too; so they are computed in one step.
        content: for whoever computes it.
    """

    start: int
    count: int
    digest: bytes
    together: bool = False
    content: object = field(default=None, compare=False, repr=False)

    @property
    def stop(self) -> int:
        return self.start + self.count


def mark_of(media: Iterable[Medium], start: int, stop: int) -> bytes:
    """What the name of a page of tokens ``[start, stop)`` has besides these: nothing, or 32 bytes
    that say what stands where in it."""
    found = [
        struct.pack("<qq", medium.start - start, medium.count) + medium.digest
        for medium in media
        if medium.start < stop and start < medium.stop
    ]
    return hashlib.sha256(b"".join(found)).digest() if found else b""


def uncut(media: Sequence[Medium], start: int, count: int) -> int:
    """How many of `count` tokens from `start` on can be computed without the others: so many that
    no medium is cut whose tokens see each other."""
    for medium in media:
        if medium.together and medium.start < start + count < medium.stop:
            return max(0, medium.start - start)
    return count


def least(media: Sequence[Medium], start: int) -> int:
    """How many tokens from `start` on are computed in one step, at least."""
    inside = (one.stop - start for one in media if one.together and one.start <= start < one.stop)
    return next(inside, 1)
