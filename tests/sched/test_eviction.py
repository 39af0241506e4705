"""What each policy gives up first, beside a plain model of it."""

import random
from collections.abc import Callable

import pytest

from kvrt.kv.index.eviction import EVICTIONS, EvictionName
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.tiers.names import PageName

from .test_batching import table_of

ROOM = 8


class Pool:
    """A cache of `ROOM` pages without pages before them, each found by a number.

    Args:
        policy: what goes when another comes.
    """

    def __init__(self, policy: EvictionName) -> None:
        self.index = PrefixIndex(EVICTIONS[policy](), table_of(1).groups)
        self.now = 0.0

    @property
    def held(self) -> set[int]:
        return {entry.pages[0] for entry in self.index}

    def use(self, page: int, depth: int = 0) -> int | None:
        """Use a page, which comes if it is not there. Returns which one went for it."""
        self.now += 1
        if page in self.held:
            entry = self.index.at(page)
            assert entry is not None
            self.index.touch(entry, self.now, hit=True)
            return None
        gone = None
        if len(self.held) == ROOM:
            gone = min(self.index, key=lambda entry: entry.worth).pages[0]
            self.index.forget(((gone,),))
        name = PageName(page.to_bytes(32, "little"), bytes(32), (page,), tenant=0)
        self.index.add(name, (page,), None, depth, self.now)
        return gone


History = list[tuple[int, int | None]]
"""The pages used, in order, and the one that went for each."""


def last_use(history: History, page: int) -> int:
    return max(n for n, (used, _) in enumerate(history) if used == page)


def uses(history: History, page: int) -> int:
    """Since it came."""
    came = max((n for n, (_, gone) in enumerate(history) if gone == page), default=-1)
    return sum(used == page for used, _ in history[came + 1 :])


MODELS: dict[EvictionName, Callable[[History, int], tuple[int, ...]]] = {
    "lru": lambda history, page: (last_use(history, page),),
    "lfu": lambda history, page: (uses(history, page), last_use(history, page)),
}
"""The page for which this is least goes first."""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", MODELS)
def test_what_goes_is_what_the_policy_says(policy: EvictionName, seed: int) -> None:
    rng = random.Random(seed)
    pool = Pool(policy)
    history: History = []
    for _ in range(300):
        page = min(int(rng.expovariate(0.15)), 40) + 1
        expected = None
        if page not in pool.held and len(pool.held) == ROOM:
            expected = min(pool.held, key=lambda page: MODELS[policy](history, page))
        gone = pool.use(page)
        assert gone == expected
        history.append((page, gone))
    assert sum(gone is not None for _, gone in history) > 50


def test_by_cost_what_was_reused_stays_longer() -> None:
    pool = Pool("cost")
    for page in range(1, ROOM + 1):
        pool.use(page)
    pool.use(3)
    assert [pool.use(page) for page in range(20, 24)] == [1, 2, 4, 5]
    assert 3 in pool.held


def test_by_cost_what_takes_longer_to_compute_stays_longer() -> None:
    pool = Pool("cost")
    pool.use(1, depth=2000)
    for page in range(2, ROOM + 1):
        pool.use(page)
    gone = [pool.use(page) for page in range(20, 20 + ROOM - 1)]
    assert gone == list(range(2, ROOM + 1))
    assert 1 in pool.held


def test_by_cost_what_was_worth_much_long_ago_does_not_stay_for_ever() -> None:
    pool = Pool("cost")
    for _ in range(10):
        pool.use(1)
    others = 0
    while 1 in pool.held:
        others += 1
        pool.use(100 + others)
        assert others < 1000, "its time never ends"
    assert others > 5 * ROOM, "but not as if it had never been used"
