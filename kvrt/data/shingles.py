"""Texts as sets of runs of words, and which of these sets may have much in common.

How much two sets have in common is their Jaccard similarity: members of both over those of either.
Under a random order of all there can be, their first members are the same with just that
probability (Broder 1997, "On the resemblance and containment of documents"). So 128 orders give a
signature, cut in b bands of r numbers each: sets that are alike in s agree in some band with the
probability 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4), and
only those are compared.
"""

import re
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

RUN = 5
"""Words of a run."""

ORDERS = 128
ENOUGH = 0.995
"""Of pairs that are just alike enough, so many are found."""

AT_ONCE = 4096
"""Members of a set that are put in order at once: 4 MiB."""

WIDE = "\u2e80-\u2fff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORDS = re.compile(rf"[{WIDE}]|[^\W{WIDE}]+")
"""Words; of scripts that write them without spaces, characters."""

_RANDOM = np.random.Generator(np.random.PCG64(20))
_FACTORS: Hashes = _RANDOM.integers(1, 2**63, ORDERS, np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS: Hashes = _RANDOM.integers(0, 2**63, ORDERS, np.uint64)


def shingles(text: str) -> Hashes:
    """The set of a text's runs of words, whatever their case and what is between them: hashes of
    64 bits, sorted; empty for a text of nothing."""
    words = WORDS.findall(text.casefold()) or text.split()
    if not words:
        return np.empty(0, np.uint64)
    count = max(1, len(words) - RUN + 1)
    runs = [
        xxhash.xxh3_64_intdigest(" ".join(words[at : at + RUN]).encode("utf-8", "surrogatepass"))
        for at in range(count)
    ]
    return np.unique(np.array(runs, np.uint64))


def jaccard(one: Hashes, other: Hashes) -> float:
    """How much two sets have in common, from 0 to 1; of two empty ones, 1."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


@dataclass(frozen=True, slots=True)
class Bands:
    """How signatures are cut.

    Args:
        count: bands.
        size: numbers of each.
    """

    count: int
    size: int

    def found(self, similarity: float) -> float:
        """The probability that sets which are so much alike agree in some band."""
        return 1.0 - float((1.0 - similarity**self.size) ** self.count)

    def keys(self, members: Hashes) -> list[int]:
        """One number for each band of a set, of 64 bits and a sign: sets that agree in a band have
        the same there."""
        rows = signature(members).reshape(-1)[: self.count * self.size].reshape(self.count, -1)
        return [
            xxhash.xxh3_64_intdigest(row.tobytes(), seed=number) - 2**63
            for number, row in enumerate(rows)
        ]


def bands_for(similarity: float) -> Bands:
    """The largest bands, which find the fewest others, by which sets that are so much alike are
    found."""
    cuts = [Bands(ORDERS // size, size) for size in range(ORDERS, 0, -1)]
    return next((cut for cut in cuts if cut.found(similarity) >= ENOUGH), cuts[-1])


def signature(members: Hashes) -> Hashes:
    """The first members of a set in each order. uint64 [ORDERS]."""
    least = np.full(ORDERS, np.iinfo(np.uint64).max, np.uint64)
    for at in range(0, len(members), AT_ONCE):
        some = members[at : at + AT_ONCE]
        # Odd factors make a permutation of all numbers of 64 bits; the upper half is the order.
        ranked = (some[None, :] * _FACTORS[:, None] + _OFFSETS[:, None]) >> np.uint64(32)
        np.minimum(least, ranked.min(axis=1), out=least)
    return least
