"""An engine without a model over real KV memory, of one or several groups of layers."""

import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from kvrt.engine.prefixes import Prefixes
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.offload import Offload
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import PageName
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits, Row, StepPlan
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
        tiers: makes what pages go to that leave the device; None: nothing.
        limit: pages of each group that there is room for.
        ttl: of cached pages, in steps.
    """

    def __init__(
        self,
        device: Device,
        kind: str,
        rng: random.Random,
        tiers: Callable[[LocalPages, PrefixReuse], Offload] | None = None,
        limit: int = 40,
        ttl: float = TTL,
    ) -> None:
        kinds, windows = zip(*map(kind_and_window, kind.split("+")), strict=True)
        self.rng, self.kind = rng, kind
        self.now, self.step, self.ids = 0.0, 0, 0
        self.pages = LocalPages(device, [layout(each) for each in kinds], 200, poison=True)
        self.cache = KVCache(
            self.pages, limit_bytes=chunks_for(kind, limit) * CHUNK, windows=windows
        )
        self.reuse = PrefixReuse(
            self.cache.table.groups, EVICTIONS["lru"](), ttl=ttl, now=lambda: self.now
        )
        self.offload = tiers and tiers(self.pages, self.reuse)
        self.reuse.tiers = self.offload
        self.memory = Memory(self.cache, self.reuse, self.offload)
        self.prefixes = Prefixes(SimpleNamespace(memory=self.memory))  # type: ignore[arg-type]
        self.waiting = Waiting(POLICIES["fcfs"])
        self.limit = limit
        self.running: dict[Seq, None] = {}
        self.fetching: dict[Seq, None] = {}
        self.said: dict[PageName, tuple[int, ...]] = {}
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
        for seq, tokens in self.memory.fetched():
            self.seen["fetched"] += bool(tokens)
            self.seen["tokens back"] += tokens
            self.running[seq] = self.fetching.pop(seq)
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
            (self.fetching if seq in plan.fetches else self.running)[seq] = None
            self.memory.begin(seq, cached, plan.fetches.get(seq))
            self.seen["cached"] += bool(cached)
        for seq in plan.stuck:
            self.end(seq)
        for row in plan.rows:
            self._check_and_write(row)
            row.seq.computed += row.count
        self.memory.computed(row.seq for row in plan.rows)
        for seq in (*self.running, *self.fetching):
            for at, name in enumerate(seq.names, 1):
                self.said[name] = tuple(seq.tokens[: at * SIZE])
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
        return plan_step(
            table, self.running, self.waiting, LIMITS, self.step, self.reuse, self.fetching
        )

    def end(self, seq: Seq) -> None:
        self.memory.end(seq, self.step)
        self.running.pop(seq, None)
        self.fetching.pop(seq, None)
        if seq in self.waiting:
            self.waiting.remove(seq)

    def something(self, what: str | None = None) -> None:
        """What does not happen in every step."""
        rng, prompt = self.rng, self.rng.choice(self.prompts)
        what = what or rng.choice(WHATEVER)
        self.seen[what] += 1
        if what == "doubt" and self.running:
            self.doubt(rng.choice([*self.running]))
        elif what == "pin":
            self.prefixes.pin(ROOT, prompt)
        elif what == "unpin":
            self.prefixes.unpin(ROOT, prompt)
        elif what == "forget":
            self.prefixes.forget(ROOT, prompt[: rng.choice([0, SIZE, 5 * SIZE])])
            self.seen["forgotten while it comes"] += bool(self.fetching)
        elif what == "limit":
            before = self.cache.stats().copies
            self.cache.set_memory_limit(
                chunks_for(self.kind, rng.choice([self.limit // 2, self.limit])) * CHUNK
            )
            self.memory.make_room()
            packed = self.cache.stats().copies > before
            self.seen.update(packed=packed, packed_meanwhile=packed and bool(self.fetching))
        elif what == "clear":
            self.clear()
        elif what == "rest" and not self.running and not self.fetching:
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

    def check_bytes(self) -> None:
        """What can be found holds what its name says, on the device and in host memory."""
        for entry in self.reuse.index:
            for group, page in enumerate(entry.pages):
                if page:
                    self._check_page(entry.name, group, self.pages.page(page, group))
        if self.offload is not None:
            host = self.offload.stores.host
            for name in host.names():
                page = host.find(name)
                assert page is not None
                self._check_page(*name, page.data)

    def _check_page(self, name: PageName, group: int, data: torch.Tensor) -> None:
        tokens = self.said[name]
        for slot, position in enumerate(range(len(tokens) - SIZE, len(tokens))):
            assert (self._slot(group, data, slot) == number(tokens, position)).all()

    def _check_and_write(self, row: Row) -> None:
        """All that the new tokens see is of the tokens before them; then they are stored."""
        seq, stop = row.seq, row.start + row.count
        for group, lane in enumerate(self.cache.table.lanes):
            pages = self.cache.table.pages(seq.id, group)
            for part in lane.group.kept(row.start):
                for at in part:
                    for slot in range(min(SIZE, row.start - at * SIZE)):
                        stored = self._slot(group, self.pages.page(pages[at], group), slot)
                        assert (stored == number(seq.tokens, at * SIZE + slot)).all()
            for position in range(row.start, stop):
                page = self.pages.page(pages[position // SIZE], group)
                self._slot(group, page, position % SIZE).fill_(number(seq.tokens, position))

    def _slot(self, group: int, page: torch.Tensor, slot: int) -> torch.Tensor:
        form, whole = self.cache.layouts[group], page.view(torch.float32)
        shape = (form.layers, 2, form.kv_heads, form.head_dim)
        strides = (form.layer_stride, form.v_offset, form.head_stride, 1)
        return torch.as_strided(
            whole, shape, strides, whole.storage_offset() + slot * form.head_dim
        )


def number(tokens: Sequence[int], position: int) -> float:
    """Of a token and all before it, exact in float32."""
    return float(zlib.crc32(bytes(tokens[: position + 1])) % 2**24)
