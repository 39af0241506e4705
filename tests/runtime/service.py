"""An engine with everything that lasts, driven by hand: no thread, no clock but its own."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvrt.config import RuntimeConfig
from kvrt.engine.assembly import make_offload
from kvrt.engine.engine import Engine
from kvrt.engine.fingerprint import page_fingerprint
from kvrt.engine.prefixes import Prefixes
from kvrt.engine.request import Request
from kvrt.engine.sizing import make_cache
from kvrt.engine.snapshots import Snapshots
from kvrt.errors import OutOfMemory
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.tiers.names import KEY_BYTES, chain, root_key, tenant_of
from kvrt.model.loader import load_model
from kvrt.outputs import Delta, Result
from kvrt.registry import load
from kvrt.sampling import SamplingParams
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.spi import DeviceOptions
from kvrt.testing.chaos import Chaos, Copies
from kvrt.wrappers import Checked

from .faulty import Faulty

CHUNK = 2 << 20
MOST_CHUNKS = 5
TTL = 10.0
PATIENCE_STEPS = 5_000

Completions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is about.

    Args:
        prompt: token ids.
        n: completions, of which those beyond the first need sampling or beams.
        new: tokens that follow.
        beams: they are the best of a beam search.
    """

    prompt: tuple[int, ...]
    n: int
    new: int
    beams: bool = False

    @property
    def params(self) -> SamplingParams:
        if self.beams:
            return SamplingParams(max_tokens=self.new, n=self.n, beam_width=self.n, ignore_eos=True)
        temperature = 0.0 if self.n == 1 else 0.8
        return SamplingParams(
            max_tokens=self.new, n=self.n, seed=1, temperature=temperature, ignore_eos=True
        )


@dataclass(slots=True, eq=False)
class Order:
    """A request on its way.

    Args:
        least_room: the fewest pages that there ever were for it.
        request: as the engine has it.
        results: one in the end.
    """

    asked: Asked
    least_room: int
    request: Request | None = None
    aborted: bool = False
    results: list[Result] = field(default_factory=list)

    def deliver(self, what: Delta | Result) -> None:
        if isinstance(what, Result):
            self.results.append(what)


class Service:
    """See the module. After every operation, call `check`; in the end, `finish`.

    Args:
        config: of the runtime that it stands for.
        folder: an empty one.
        right: what a cold engine that has the machine for itself says.
        copies: when they are done.
        seed: of the device's moods.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        folder: Path,
        right: Callable[[Asked], Completions],
        *,
        copies: Copies,
        seed: int,
    ) -> None:
        self.now = 0.0
        self.folder = folder
        self.right = right
        self.orders: list[Order] = []
        self.faulty = Faulty(
            Chaos(load("cpu").open(0, DeviceOptions(threads=1)), seed, None, copies)
        )
        self.device = Checked(self.faulty)
        self.model = load_model(config.model, self.device, load_format="dummy", seed=1)
        self.executor, self.cache = make_cache(config, self.device, self.model)
        self.fingerprint = page_fingerprint(self.model, self.cache.layouts, self.device.info)
        self.reuse = PrefixReuse(
            self.cache.table.groups,
            EVICTIONS[config.prefix_cache_policy](),
            MoveCost(config.preemption),
            TTL,
            lambda: self.now,
        )
        offload = make_offload(config, self.executor, self.fingerprint, self.reuse)
        self.engine = Engine(
            self.model,
            self.executor,
            Memory(self.cache, self.reuse, offload),
            Limits(config.max_batch_tokens, config.max_running),
            POLICIES[config.policy],
        )
        self.prefixes = Prefixes(self.engine)
        self.snapshots = Snapshots(self.engine, self.fingerprint, lambda function: function())

    # --- what can happen ---------------------------------------------------------------------

    def submit(self, asked: Asked, salt: str | None, drafts: int) -> None:
        """`salt`: None makes it private."""
        order = Order(asked, self.room)
        self.orders.append(order)
        private = salt is None
        order.request = Request(
            id=f"{len(self.orders)}",
            prompt=asked.prompt,
            params=asked.params,
            seed=1,
            max_len=len(asked.prompt) + asked.new,
            priority=0,
            root=bytes([len(self.orders) % 256]) * KEY_BYTES if private else self.root(salt),
            shares=not private,
            drafts=0 if asked.beams else drafts,
            detokenizer=lambda: None,
            deliver=order.deliver,
        )
        self.engine.add(order.request)

    def step(self) -> None:
        self.now += 0.01
        if not self.engine.busy:
            return
        for order in self.orders:
            order.least_room = min(order.least_room, self.room)
        self.engine.step()
        for order in self.orders:
            order.least_room = min(order.least_room, self.room)

    def abort(self, number: int) -> None:
        live = [order for order in self.orders if not order.results]
        if live:
            order = live[number % len(live)]
            order.aborted = True
            assert order.request is not None
            self.engine.abort(order.request)
            assert order.results

    def set_limit(self, chunks: int) -> None:
        self.cache.set_memory_limit(chunks * CHUNK)

    def run_short(self, short: bool) -> None:
        """The device has, or has not, memory beside what is held."""
        if short:
            self.faulty.refused["memory.create"] = OutOfMemory("no more")
        else:
            self.faulty.refused.clear()

    def rest(self, seconds: float) -> None:
        """Time passes while nothing runs."""
        if not self.engine.busy:
            self.now += seconds
            self.engine.memory.rest()

    def pin(self, salt: str, prompt: tuple[int, ...]) -> None:
        self.prefixes.pin(self.root(salt), prompt)

    def unpin(self, salt: str, prompt: tuple[int, ...]) -> None:
        self.prefixes.unpin(self.root(salt), prompt)

    def forget(self, salt: str | None, prompt: tuple[int, ...]) -> None:
        root = None if salt is None else self.root(salt)
        self.prefixes.forget(root, prompt)
        offload = self.engine.memory.offload
        left = {entry.name for entry in self.reuse.index}
        if offload is not None:
            left.update(name.page for name in offload.stores.names())
        if root is None:
            assert not left
        elif names := list(chain(root, prompt, self.cache.page_size)):
            assert not [name for name in left if names[-1].key in (name.key, name.parent)]
        else:
            assert not [name for name in left if name.tenant == tenant_of(root)]

    def save(self, number: int, salt: str | None, prompt: tuple[int, ...]) -> None:
        root = None if salt is None else self.root(salt)
        self.snapshots.save(self.folder / f"{number}", root, prompt, None)

    def load(self, number: int) -> None:
        if (self.folder / f"{number}").exists():
            self.snapshots.load(self.folder / f"{number}")

    # --- what must hold ----------------------------------------------------------------------

    def root(self, salt: str) -> bytes:
        return root_key(self.fingerprint, salt)

    @property
    def room(self) -> int:
        """Pages that a request can have that is alone."""
        limit = self.cache.stats().limit_bytes // CHUNK
        table = self.cache.table
        pinned = {
            page for seq in table.sequences if isinstance(seq, tuple) for page in table.pages(seq)
        }
        return table.lanes[0].geometry.pages_in(limit) - 1 - len(pinned)

    def check(self) -> None:
        """What holds after every operation."""
        self.cache.check_integrity()
        stats = self.cache.stats()
        assert stats.mapped_bytes + stats.pooled_bytes == self.device.memory.info().chunks
        for group, lane in enumerate(self.cache.table.lanes):
            indexed = [entry.pages[group] for entry in self.reuse.index if entry.pages[group]]
            assert sorted(indexed) == lane.holders.named
        if self.engine.memory.offload is not None:
            self.engine.memory.offload.stores.host.check_integrity()
        for order in self.orders:
            self._check_answer(order)

    def _check_answer(self, order: Order) -> None:
        assert len(order.results) <= 1
        for result in order.results:
            said = [completion.token_ids for completion in result.completions]
            right = self.right(order.asked)
            reasons = {completion.finish_reason for completion in result.completions}
            assert reasons <= {"length", "capacity", *(["abort"] if order.aborted else [])}
            if "capacity" in reasons:
                needed = self.cache.table.lanes[0].geometry.pages_for(
                    len(order.asked.prompt) + order.asked.new
                )
                together = order.asked.n if order.asked.beams else 1
                assert together * needed > order.least_room, "there was room for it"
            if not order.asked.beams:  # the best so far may not be what the best begins with
                for completion, whole in zip(said, right, strict=False):
                    assert completion == whole[: len(completion)]
            if reasons == {"length"}:
                assert tuple(said) == right

    def finish(self) -> None:
        """Every request is answered, and nothing is left."""
        self.run_short(False)
        self.set_limit(MOST_CHUNKS)
        for _ in range(PATIENCE_STEPS):
            if not self.engine.busy:
                break
            self.step()
        self.check()
        assert all(order.results for order in self.orders), "a request waits for ever"
        self.forget(None, ())
        assert self.cache.stats().used_pages == 0, "not even pins outlast that"
        self.check()
        offload = self.engine.memory.offload
        if offload is not None:
            end = time.monotonic() + 10
            while offload.busy:
                offload.poll()
                assert time.monotonic() < end
            assert offload.stats().host.pages == offload.stats().host.pinned == 0
        self.rest(0.0)
        stats = self.cache.stats()
        assert stats.cached_pages == stats.retired_pages == len(self.reuse.index) == 0
        self.close()
        assert self.faulty.left == 0

    def seen(self) -> Counter[str]:
        """How often what has happened that tests are about."""
        results = [result for order in self.orders for result in order.results]
        seen = Counter(
            completion.finish_reason for result in results for completion in result.completions
        )
        seen["cached"] = sum(result.usage.cached_tokens for result in results)
        seen["preempted"] = sum(result.usage.preemptions for result in results)
        seen["accepted"] = sum(result.usage.accepted_tokens for result in results)
        seen["refused"] = self.faulty.failed.total()
        seen["steps"] = self.engine.steps
        offload = self.engine.memory.offload
        if offload is not None:
            stats = offload.stats()
            seen.update(
                saved=stats.saved_pages, fetched=stats.fetched_pages, missed=stats.missed_pages
            )
        return seen

    def close(self) -> None:
        self.engine.memory.close()
        self.cache.close()
        self.device.close()
