"""The elastic connector's two halves without vLLM: a pool of blocks, its balloon, and real memory
under the blocks that may be used. `test_vllm.py` has the same with vLLM itself."""

import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from kvrt import CapacityError, ConfigError
from kvrt.integrations.vllm.balloon import Balloon, Orders
from kvrt.integrations.vllm.contract import check_contract
from kvrt.integrations.vllm.ground import BlockMemory, Ground, Layout, Run
from kvrt.integrations.vllm.obeying import obey
from kvrt.integrations.vllm.options import Options
from kvrt.integrations.vllm.plugin import register
from kvrt.integrations.vllm.telling import Telling
from kvrt.sharing.orders import Outcome, Verb, post
from kvrt.sharing.share import Share
from kvrt.sharing.tenant import Tenant, Terms, figures_of

BLOCKS, LAYERS = 64, 3
BLOCK_BYTES = 384 << 10
PART = BLOCK_BYTES // LAYERS


@dataclass(frozen=True)
class Block:
    block_id: int


@dataclass
class Request:
    """vLLM's, as far as it is asked."""

    request_id: str
    prompt_token_ids: list[int]
    num_computed_tokens: int
    num_output_tokens: int = 0


@dataclass
class Again:
    """Requests that were scheduled before."""

    req_ids: list[str]
    num_output_tokens: list[int]


@dataclass
class Output:
    """What vLLM's scheduler puts out for a step."""

    scheduled_new_reqs: list[Request]
    scheduled_cached_reqs: Again
    num_scheduled_tokens: dict[str, int]
    preempted_req_ids: set[str] | None = None


class Pool:
    """vLLM's, as far as it is asked: block 0 is the null block, the rest is free at first. It hands
    out blocks in which nothing is cached first."""

    num_gpu_blocks = BLOCKS

    def __init__(self) -> None:
        self.free = deque(Block(number) for number in range(1, BLOCKS))
        self.cached = set[Block]()

    def get_num_free_blocks(self) -> int:
        return len(self.free)

    def get_new_blocks(self, num_blocks: int) -> list[Block]:
        taken = [self.free.popleft() for _ in range(num_blocks)]
        self.cached -= {*taken}
        return taken

    def free_blocks(self, ordered_blocks: Iterable[Block]) -> None:
        for block in ordered_blocks:
            if block in self.cached:
                self.free.append(block)
            else:
                self.free.appendleft(block)


class Engine:
    """Steps of requests that come, grow and go; the worker is `lag` steps behind. Blocks that were
    given back, and are nobody's meanwhile, are looked at `late` steps later.

    A step writes to each block that was taken for it, and looks at each that was given back after
    it. Without memory under it, that ends the process.
    """

    def __init__(
        self, balloon: Balloon, pool: Pool, memory: BlockMemory, lag: int, late: int = 0
    ) -> None:
        self.balloon, self.pool, self.memory, self.lag = balloon, pool, memory, lag
        self.later = deque[set[Block]](set() for _ in range(late))
        self.running: list[list[Block]] = []
        self.on_their_way: deque[tuple[Orders, set[Block], set[Block]]] = deque()
        self.read, self.written = set[Block](), set[Block]()
        self.most = 0

    def admit(self, blocks: int) -> bool:
        self.balloon.want(blocks)
        if self.pool.get_num_free_blocks() < blocks:
            return False
        self.running.append([])
        self.take(self.running[-1], blocks)
        return True

    def grow(self, request: list[Block]) -> bool:
        if not self.pool.get_num_free_blocks() and not self.balloon.more():
            return False
        self.take(request, 1)
        return True

    def take(self, request: list[Block], blocks: int) -> None:
        request += (new := self.pool.get_new_blocks(blocks))
        self.written.update(new)
        for each in self.later:
            each.difference_update(new)

    def finish(self, request: list[Block]) -> None:
        self.running.remove(request)
        self.read |= {*request} - self.written  # by the step before
        self.written -= {*request}
        self.pool.cached |= {*request}
        self.pool.free_blocks(request)

    def parts(self, block: Block) -> Iterator[torch.Tensor]:
        for layer in range(LAYERS):
            at = self.start(layer) + block.block_id * self.step
            yield self.memory.tensor[at : at + PART]

    def start(self, layer: int) -> int:
        return layer * PART * (1 if self.step == BLOCK_BYTES else BLOCKS)

    @property
    def step(self) -> int:
        return self.memory.layout.runs[0].step

    def write(self, block: Block) -> None:
        for layer, part in enumerate(self.parts(block)):
            part.fill_((block.block_id + layer) % 100)

    def look(self, block: Block) -> None:
        for layer, part in enumerate(self.parts(block)):
            assert part[0] == part[-1] == (block.block_id + layer) % 100

    def end_step(self) -> None:
        orders = self.balloon.orders(len(self.running))
        self.later.append(self.read)
        self.on_their_way.append((orders, self.later.popleft(), self.written))
        self.read, self.written = set(), set()
        while len(self.on_their_way) > self.lag:
            orders, read, written = self.on_their_way.popleft()
            for block in read:
                self.look(block)
            self.memory.change(orders.gone, orders.new, None)
            self.most = max(self.most, self.memory.held)
            for block in written:
                self.write(block)
            self.balloon.reported(orders.number, self.memory.held)


def views(memory: BlockMemory, together: bool) -> list[torch.Tensor]:
    """The layers of the tensor: a block's layers together, or each layer's blocks."""
    shape = (BLOCKS, LAYERS, PART) if together else (LAYERS, BLOCKS, PART)
    every = memory.tensor.view(shape)
    return [every[:, at] if together else every[at] for at in range(LAYERS)]


@pytest.fixture
def memory() -> Iterator[BlockMemory]:
    one = BlockMemory(BLOCKS * BLOCK_BYTES, torch.device("cpu"))
    yield one
    one.close()


def test_blocks_share_chunks_and_the_last_one_gives_them_up() -> None:
    ground = Ground(Layout((Run(0, 100, 100),), 256))
    assert ground.take(0) == {0}
    assert ground.take(2) == {1}  # bytes 200 to 300 lie in both
    assert ground.take(1) == set()
    assert ground.give(0) == set()
    assert ground.give(2) == {1}
    assert ground.give(1) == {0}
    assert len(ground) == 0


@pytest.mark.parametrize("together", [True, False])
def test_a_layout_is_read_off_the_layers(memory: BlockMemory, together: bool) -> None:
    layout = memory.lay(views(memory, together), BLOCK_BYTES)
    assert len(layout.runs) == (1 if together else LAYERS)
    assert layout.block_bytes == BLOCK_BYTES
    assert memory.held == layout.chunks_for([0])


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("limit", "late"), [(None, 0), (10, 0), (10, 2)])
def test_whatever_requests_do_every_block_in_use_has_memory_and_no_more_is_held_than_leased(
    memory: BlockMemory, tmp_path: Path, lag: int, together: bool, limit: int | None, late: int
) -> None:
    draw = random.Random(2 * lag + together)
    layout = memory.lay(views(memory, together), BLOCK_BYTES)
    size = layout.chunk_bytes
    pool = Pool()
    balloon = Balloon(pool, headroom=3, keep=0, delay=late)
    tenant = Tenant(tmp_path / "ledger", 12 * size, Terms("a"))
    other = Tenant(tmp_path / "ledger", None, Terms("b"))
    bytes_allowed = None if limit is None else limit * size
    balloon.lay(layout, limit_bytes=bytes_allowed, longest=8, tenant=tenant)
    engine = Engine(balloon, pool, memory, lag, late)
    for _ in range(120):
        for request in list(engine.running):
            if len(request) < 8 and draw.random() < 0.3 and not engine.grow(request):
                engine.finish(draw.choice(engine.running))  # as a preemption does
                break
            if request in engine.running and draw.random() < 0.1:
                engine.finish(request)
        if draw.random() < 0.5:
            engine.admit(draw.randint(1, 8))
        if draw.random() < 0.05:
            other.wants(draw.randint(0, 12) * size)
        engine.end_step()
        assert memory.held * size <= tenant.held <= (limit or 12) * size
    assert engine.most > 6
    for request in list(engine.running):
        engine.finish(request)
    for _ in range(4 + late):
        engine.end_step()
    assert balloon.settled
    assert pool.get_num_free_blocks() == 0
    assert memory.held == layout.chunks_for([0])
    assert memory.held * size == tenant.held
    tenant.close()
    other.close()


def test_memory_that_no_step_needed_for_a_while_goes_back_while_others_run(
    memory: BlockMemory,
) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    pool = Pool()
    balloon = Balloon(pool, headroom=2, keep=0)
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=None)
    engine = Engine(balloon, pool, memory, 0)
    assert engine.admit(2)
    assert engine.admit(40)
    engine.end_step()
    most = memory.held
    engine.finish(engine.running[-1])
    for _ in range(2 * 64):
        engine.end_step()
    assert memory.held <= most / 2
    assert pool.get_num_free_blocks() == 2


def test_blocks_that_may_stay_keep_what_is_cached_in_them(memory: BlockMemory) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    pool = Pool()
    balloon = Balloon(pool, headroom=2, keep=5)
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=None)
    engine = Engine(balloon, pool, memory, 0)
    assert engine.admit(20)
    engine.end_step()
    used = engine.running[0][-5:]
    engine.finish(engine.running[0])
    assert not balloon.settled
    for _ in range(2):
        engine.end_step()
    assert balloon.settled
    assert [*pool.free] == used
    assert engine.admit(30)
    engine.end_step()
    assert pool.cached == {*used}
    for block in used:
        engine.look(block)


def test_memory_stays_for_a_moment_once_no_request_is_left(memory: BlockMemory) -> None:
    layout, now = memory.lay(views(memory, True), BLOCK_BYTES), [0.0]
    pool = Pool()
    balloon = Balloon(pool, headroom=2, keep=0, linger=0.5, clock=lambda: now[0])
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=None)
    engine = Engine(balloon, pool, memory, 0)
    maps = []
    for second in (0.0, 0.4, 0.8):  # each comes before the one before has been gone for long
        now[0] = second
        engine.end_step()
        assert engine.admit(20)
        engine.end_step()
        maps.append(memory.maps)
        engine.finish(engine.running[0])
        engine.end_step()
    assert maps == [maps[0]] * 3  # the next request uses the memory of the one before
    held = memory.held
    assert held > 3
    assert not balloon.settled
    now[0] = 1.2
    engine.end_step()
    assert memory.held == held
    now[0] = 1.3
    engine.end_step()
    engine.end_step()
    assert balloon.settled
    assert memory.held == layout.chunks_for([0])


def test_what_another_tenant_is_due_goes_back_as_blocks_become_free(
    memory: BlockMemory, tmp_path: Path
) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    size, pool = layout.chunk_bytes, Pool()
    balloon = Balloon(pool, headroom=2, keep=0)
    tenant = Tenant(tmp_path / "ledger", 12 * size, Terms("a"))
    other = Tenant(tmp_path / "ledger", None, Terms("b"))
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=tenant)
    engine = Engine(balloon, pool, memory, 0)
    assert engine.admit(4)
    assert engine.admit(50)
    engine.end_step()
    assert tenant.held > 9 * size
    other.wants(6 * size)
    engine.end_step()
    assert tenant.held > 9 * size  # of running requests nothing is taken
    engine.finish(engine.running[-1])
    for _ in range(3):
        engine.end_step()
    assert tenant.held <= 6 * size
    other.take(6 * size)
    tenant.close()
    other.close()


def test_a_lower_limit_takes_what_comes_free_and_a_higher_one_lets_more_come(
    memory: BlockMemory,
) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    size, pool = layout.chunk_bytes, Pool()
    balloon = Balloon(pool, headroom=2, keep=0)
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=None)
    engine = Engine(balloon, pool, memory, 0)
    for blocks in (4, 40):
        assert engine.admit(blocks)
        engine.end_step()
    assert not balloon.set_limit(4 * size)
    assert not engine.admit(8)
    engine.finish(engine.running[-1])
    for _ in range(2):
        engine.end_step()
    figures = balloon.figures()
    assert memory.held * size == figures.held <= figures.limit == 4 * size
    assert figures.used == 4 * BLOCK_BYTES
    assert figures.refused > 0
    with pytest.raises(CapacityError, match="the longest request"):
        balloon.set_limit(size)
    assert balloon.set_limit(12 * size)
    assert engine.admit(40)
    engine.end_step()
    figures = balloon.figures()
    assert figures.held > 4 * size
    with_memory = figures.used + figures.cached
    assert with_memory == (figures.mapped - figures.unmapped) * BLOCK_BYTES


def test_what_is_reclaimed_is_what_nobody_uses(memory: BlockMemory) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    pool = Pool()
    balloon = Balloon(pool, headroom=2, keep=20, linger=60.0)
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=None)
    engine = Engine(balloon, pool, memory, 0)
    for blocks in (4, 20):
        assert engine.admit(blocks)
        engine.end_step()
    engine.finish(engine.running[-1])
    assert not balloon.reclaim()
    engine.end_step()
    assert balloon.figures().cached == 0
    engine.finish(engine.running[0])
    assert not balloon.reclaim()
    engine.end_step()
    engine.end_step()
    assert memory.held == layout.chunks_for([0])
    assert balloon.reclaim()


def test_a_tenant_obeys_while_nothing_runs_and_tells_what_it_did(
    memory: BlockMemory, tmp_path: Path
) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    size, path = layout.chunk_bytes, tmp_path / "ledger"
    balloon = Balloon(Pool(), headroom=2, keep=0)
    tenant = Tenant(path, 12 * size, Terms("a"))
    balloon.lay(layout, limit_bytes=None, longest=8, tenant=tenant)
    tenant.listen(partial(obey, balloon, tenant))
    assert post(path, "a", Verb.LIMIT, 5 * size).outcome is Outcome.APPLIED
    assert balloon.figures().limit == 5 * size
    for verb, value in ((Verb.LIMIT, size), (Verb.SLEEP, 1), (Verb.WAKE, 0)):
        assert post(path, "a", verb, value).outcome is Outcome.REFUSED
    assert post(path, "a", Verb.GUARANTEE, 2 * size).outcome is Outcome.APPLIED
    assert post(path, "a", Verb.RECLAIM).outcome is Outcome.APPLIED
    telling = Telling(tenant, clock=lambda: 0.0)
    first = Request("x", [1, 2, 3], 2)
    telling.came(first)
    telling.came(Request("y", [1], 0))
    telling.scheduled(Output([first], Again([], []), {"x": 1}), balloon.figures)
    telling.scheduled(Output([], Again(["x"], [1]), {"x": 1}, {"y"}), balloon.figures)
    first.num_output_tokens = 2
    telling.ended(first)
    telling.scheduled(Output([], Again([], []), {}), balloon.figures)
    ((_, told),) = figures_of(path)[1]
    assert (told.prompt, told.reused, told.tokens, told.preempted) == (3, 2, 2, 1)
    assert (told.running, told.waiting, told.mapped) == (0, 1, balloon.figures().held)
    tenant.close()


def test_a_limit_without_room_for_the_longest_request_is_refused(memory: BlockMemory) -> None:
    layout = memory.lay(views(memory, True), BLOCK_BYTES)
    balloon = Balloon(Pool(), headroom=2, keep=0)
    with pytest.raises(CapacityError, match="the longest request needs") as error:
        balloon.lay(layout, limit_bytes=4 << 20, longest=40, tenant=None)
    assert "max_model_len" in error.value.fix


def test_options_are_checked() -> None:
    read = Options.read({"share": "gpu0:8GiB", "guarantee": "1GiB", "headroom": 4})
    assert read.share == Share(name="gpu0", size="8GiB", guarantee="1GiB")
    assert Options.read({}) == Options()
    for wrong, message in [
        ({"limit": 1}, "has no option limit"),
        ({"guarantee": 1}, "need a share"),
        ({"share": "gpu0", "keep": "1GiB"}, "exclude each other"),
        ({"memory_limit": "much"}, "memory_limit"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Options.read(wrong)


def test_another_vllm_than_was_tested_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tested with vLLM 0\.32, and this is 0\.99\.1"):
        check_contract("0.99.1", {})


def test_a_vllm_that_is_not_asked_for_kvrts_attention_keeps_its_own() -> None:
    register({})
    register({"KVRT_VLLM_ATTENTION": "0"})
    assert "vllm" not in sys.modules
