"""What a cached page is worth. The page of least worth is given up first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from kvrt.kv.tiers.names import PageName

EvictionName = Literal["lru", "lfu", "cost"]

Worth = tuple[float, float]

_DOUBLE_DEPTH = 256
"""So many pages before a page make computing it about twice as dear: at 4,096 tokens, attention
takes a small model as long as its products."""


@dataclass(slots=True, eq=False)
class CachedPage:
    """A full page of tokens that are known, held by a sequence or only cached.

    Where a group of layers has given it up, others may still have it, or pages after it: then it
    stays as the link between them, since a page is only believed after the one before it.

    Args:
        name: its tokens, and its place in the chain.
        pages: where it is, in each group of layers; 0: not there.
        before: the page before it; None if it is the first.
        depth: how many pages come before it.
        used: when a sequence last held it, in seconds of a monotonic clock.
        hits: how many sequences began with it instead of computing it.
        worth: by the policy.
        after: how many pages come directly after it.
        next: the one of them that came last; None: it has gone.
        resumed: behind it a prompt ended, or a sequence began.
    """

    name: PageName
    pages: tuple[int, ...]
    before: "CachedPage | None"
    depth: int
    used: float
    hits: int = 0
    worth: Worth = (0.0, 0.0)
    after: int = 0
    next: "CachedPage | None" = None
    resumed: bool = False


class Eviction(Protocol):
    """An eviction policy."""

    def worth(self, page: CachedPage) -> Worth:
        """Of a page that has just been used."""

    def evicted(self, page: CachedPage) -> None:
        """The page was given up, in all groups."""


class LeastRecentlyUsed:
    """The page goes whose last use is longest ago."""

    def worth(self, page: CachedPage) -> Worth:
        return (page.used, 0.0)

    def evicted(self, page: CachedPage) -> None:
        pass


class LeastFrequentlyUsed:
    """The page goes that was reused least; of several, the one whose use is longest ago."""

    def worth(self, page: CachedPage) -> Worth:
        return (page.hits, page.used)

    def evicted(self, page: CachedPage) -> None:
        pass


class CostAware:
    """The page goes that saves the least work, by how often it was reused and what it costs.

    GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998) for pages of one size: worth is
    ``clock + (hits + 1) * cost``, and the clock is the worth of the last page that went, so that
    what was worth much long ago does not stay for ever. To compute a page anew costs the more the
    longer the context is that its tokens attend to.
    """

    def __init__(self) -> None:
        self._clock = 0.0

    def worth(self, page: CachedPage) -> Worth:
        return (self._clock + (page.hits + 1) * (1 + page.depth / _DOUBLE_DEPTH), page.used)

    def evicted(self, page: CachedPage) -> None:
        self._clock = max(self._clock, page.worth[0])


EVICTIONS: dict[EvictionName, Callable[[], Eviction]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "cost": CostAware,
}
"""By name; each cache has a policy of its own."""
