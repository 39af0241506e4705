"""The KV memory of several groups of layers: whatever comes, sequences find their own tokens."""

import math
import random
import zlib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from kvrt.engine.prefixes import Prefixes
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.seq import Seq
from kvrt.sched.batching import Limits, Row, StepPlan, plan_step
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting
from kvrt.spi import Device

from .shapes import CHUNK, SIZE, chunks_for, kind_and_window, layout

ROOT = b"root" * 8
TTL = 30.0
LIMITS = Limits(max_batch_tokens=40, max_running=6)

WHATEVER = ["doubt", "pin", "unpin", "forget", "limit", "clear", "rest"]


class Life:
    """An engine whose model writes into each slot a number for all tokens up to it.

    Args:
        device: a real one.
        kind: of groups; see `shapes`.
        rng: what happens.
        ttl: of cached pages, in steps.
    """

    def __init__(self, device: Device, kind: str, rng: random.Random, ttl: float = TTL) -> None:
        kinds, windows = zip(*map(kind_and_window, kind.split("+")), strict=True)
        self.rng, self.kind = rng, kind
        self.now, self.step, self.ids = 0.0, 0, 0
        self.pages = LocalPages(device, [layout(each) for each in kinds], 200, poison=True)
        self.cache = KVCache(self.pages, limit_bytes=chunks_for(kind, 40) * CHUNK, windows=windows)
        self.reuse = PrefixReuse(
            self.cache.table.groups, EVICTIONS["lru"](), ttl=ttl, now=lambda: self.now
        )
        self.memory = Memory(self.cache, self.reuse)
        self.prefixes = Prefixes(SimpleNamespace(memory=self.memory))  # type: ignore[arg-type]
        self.waiting = Waiting(POLICIES["fcfs"])
        self.running: dict[Seq, None] = {}
        self.prompts: list[list[int]] = [[]]
        self.seen: Counter[str] = Counter()

    # --- what happens ------------------------------------------------------------------------

    def add(self) -> None:
        known, self.ids = self.rng.choice(self.prompts), self.ids + 1
        tokens = known[: self.rng.choice([len(known), self.rng.randint(0, len(known))])]
        tokens = tokens + [self.rng.randrange(3) for _ in range(self.rng.randint(1, 25))]
        self.prompts = [*self.prompts[-12:], tokens]
        self.waiting.append(
            Seq(
                id=self.ids, tokens=[*tokens], prompt_len=len(tokens), arrival=self.ids, root=ROOT,
                max_len=len(tokens) + self.rng.randint(1, 12),
            )
        )  # fmt: skip

    def go_on(self) -> None:
        """One step."""
        self.step, self.now = self.step + 1, self.now + 1
        plan = self._plan()
        assert self.memory.commit(plan.change) is None
        for seq in plan.preempted:
            self.memory.end(seq, self.step)
            del self.running[seq]
            seq.computed = seq.named = 0
            seq.preemptions += 1
            self.waiting.append(seq)
        for seq, cached in plan.admitted.items():
            self.waiting.remove(seq)
            self.running[seq] = None
            self.memory.begin(seq, cached)
            self.seen["cached"] += bool(cached)
        for seq in plan.stuck:
            self.end(seq)
        for row in plan.rows:
            self._check_and_write(row)
            row.seq.computed += row.count
        self.memory.computed(row.seq for row in plan.rows)
        for row in plan.rows:
            if row.samples:
                row.seq.tokens.append(self.rng.randrange(3))
                if len(row.seq.tokens) >= row.seq.max_len:
                    self.end(row.seq)
        self.cache.end_step(self.step)
        self.seen["preempted"] += len(plan.preempted)

    def _plan(self) -> StepPlan:
        if self.cache.bytes_over_limit:
            self.memory.make_room()
        table = self.cache.table
        return plan_step(table, self.running, self.waiting, LIMITS, self.step, self.reuse)

    def end(self, seq: Seq) -> None:
        self.memory.end(seq, self.step)
        self.running.pop(seq, None)
        if seq in self.waiting:
            self.waiting.remove(seq)

    def something(self) -> None:
        """What does not happen in every step."""
        rng, prompt = self.rng, self.rng.choice(self.prompts)
        what = rng.choice(WHATEVER)
        self.seen[what] += 1
        if what == "doubt" and self.running:
            self.doubt(rng.choice([*self.running]))
        elif what == "pin":
            self.prefixes.pin(ROOT, prompt)
        elif what == "unpin":
            self.prefixes.unpin(ROOT, prompt)
        elif what == "forget":
            self.prefixes.forget(ROOT, prompt[: rng.choice([0, SIZE, 5 * SIZE])])
        elif what == "limit":
            self.cache.set_memory_limit(chunks_for(self.kind, rng.choice([20, 40])) * CHUNK)
            self.memory.make_room()
        elif what == "clear":
            self.clear()
        elif what == "rest" and not self.running:
            self.now += rng.choice([1.0, TTL])
            self.memory.rest()

    def doubt(self, seq: Seq) -> None:
        """What it alone has is of no use to anyone."""
        for group, lane in enumerate(self.cache.table.lanes):
            row = self.cache.table.row(seq.id, group)
            for page in lane.held(row[lane.holders.own(row)]).tolist():
                self.pages.page(page, group).fill_(0xFF)
        self.memory.doubt(seq)
        self.end(seq)

    def clear(self) -> None:
        self.memory.clear(self.running)
        for seq in self.running:
            seq.computed = seq.named = 0
            self.waiting.append(seq)
        self.running.clear()

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """The index knows the pages that the table says it holds, and can give up all that no
        sequence holds."""
        self.cache.check_integrity()
        table = self.cache.table
        evicted = table.forget(self.reuse.in_order().take(table, table.idle_bytes))
        assert evicted.table.idle_pages == 0
        for group, lane in enumerate(self.cache.table.lanes):
            indexed = [entry.pages[group] for entry in self.reuse.index if entry.pages[group]]
            assert sorted(indexed) == lane.holders.named

    def _check_and_write(self, row: Row) -> None:
        """All that the new tokens see is of the tokens before them; then they are stored."""
        seq, stop = row.seq, row.start + row.count
        for group, lane in enumerate(self.cache.table.lanes):
            pages = self.cache.table.pages(seq.id, group)
            for part in lane.group.kept(row.start):
                for at in part:
                    for slot in range(min(SIZE, row.start - at * SIZE)):
                        stored = self._slot(group, pages[at], slot)
                        assert (stored == number(seq, at * SIZE + slot)).all()
            for position in range(row.start, stop):
                slot = self._slot(group, pages[position // SIZE], position % SIZE)
                slot.fill_(number(seq, position))

    def _slot(self, group: int, page: int, slot: int) -> torch.Tensor:
        form = self.cache.layouts[group]
        whole = self.pages.page(page, group).view(torch.float32)
        shape = (form.layers, 2, form.kv_heads, form.head_dim)
        strides = (form.layer_stride, form.v_offset, form.head_stride, 1)
        return torch.as_strided(
            whole, shape, strides, whole.storage_offset() + slot * form.head_dim
        )


def number(seq: Seq, position: int) -> float:
    """Of a token and all before it, exact in float32."""
    return float(zlib.crc32(bytes(seq.tokens[: position + 1])) % 2**24)


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


@pytest.mark.parametrize("ttl", [TTL, 1e9, math.inf])
def test_memory_that_rests_says_when_it_will_have_more_to_give_back(
    null_device: Device, ttl: float
) -> None:
    life = Life(null_device, "many in a chunk 0 0", random.Random(1), ttl)
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
