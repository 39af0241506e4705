"""The KV memory of several groups of layers: whatever comes, sequences find their own tokens."""

import math
import random
from collections import Counter

import pytest

from kvrt.kv.memory import Memory
from kvrt.spi import Device

from .life import TTL, WHATEVER, Life
from .shapes import CHUNK, SIZE


@pytest.mark.parametrize(
    "kind",
    [
        "many in a chunk 6 0",
        "straddling+many in a chunk 9 0",
        "many in a chunk+one chunk 11 5",
        "straddling 14 0+many in a chunk 5 2",
    ],
)
def test_sequences_read_what_was_computed_of_their_tokens(null_device: Device, kind: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        life = Life(null_device, kind, random.Random(seed))
        for _ in range(60):
            if len(life.waiting) < 3:
                life.add()
            life.go_on()
            if life.rng.random() < 0.25:
                life.something()
            life.check()
        for seq in [*life.running, *life.waiting]:
            life.end(seq)
        life.prefixes.forget(None)
        life.memory.rest()
        assert life.cache.stats().cached_pages == life.cache.stats().used_pages == 0
        assert not [*life.reuse.index]
        life.memory.close()
        life.cache.close()
        seen += life.seen
    assert min(seen[what] for what in WHATEVER) > 0, seen
    assert seen["cached"] > 20, seen
    assert seen["packed"] > 0 or "one chunk" in kind, seen


@pytest.mark.parametrize("ttl", [TTL, 1e9, math.inf])
def test_memory_that_rests_says_when_it_will_have_more_to_give_back(
    null_device: Device, ttl: float
) -> None:
    life = Life(null_device, "many in a chunk 0 0", random.Random(1), ttl=ttl)
    assert life.memory.rest() is None, "nothing is cached"
    life.add()
    while [*life.running, *life.waiting]:
        life.go_on()
    assert life.cache.stats().cached_pages > 0
    ended, life.now = life.now, life.now + 4
    soon = life.memory.rest()
    longest = 3600.0  # that a system can wait for
    assert soon == (None if ttl == math.inf else min(ttl - 4, longest))
    life.now = ended + ttl
    assert life.memory.rest() is None
    left = life.cache.stats().cached_pages
    assert left == len([*life.reuse.index])
    assert (left == 0) == (ttl < math.inf)
    life.cache.close()


def test_steps_of_few_tokens_say_nothing_about_the_speed_of_prefill(null_device: Device) -> None:
    life = Life(null_device, "many in a chunk 0 0", random.Random(1))
    cost = life.reuse.cost
    unknown = cost.bring_back(10, SIZE, stored=False)
    life.memory.measured(63, 100, 6.3)
    assert cost.bring_back(10, SIZE, stored=False) == unknown
    life.memory.measured(64, 100, 6.4)
    assert cost.bring_back(10, SIZE, stored=False) == pytest.approx(1.0)
    Memory(life.cache).measured(64, 100, 6.4)  # that finds nothing again, and forgets it
    life.cache.close()


def test_of_cached_pages_only_those_go_that_have_no_room_and_memory_goes_at_once(
    null_device: Device,
) -> None:
    life = Life(null_device, "many in a chunk 0 0", random.Random(1))
    while life.cache.stats().cached_pages < 24:
        life.add()
        while [*life.running, *life.waiting]:
            life.go_on()
    life.cache.set_memory_limit(2 * CHUNK)
    life.memory.make_room()
    stats = life.cache.stats()
    assert stats.cached_pages == 2 * 8 - 1, "one is the null page"
    assert stats.mapped_bytes + stats.pooled_bytes == 2 * CHUNK
    life.check_bytes()
    life.cache.close()
