"""A machine whose memory runs short while requests run, as the system says it."""

from collections.abc import Callable

import pytest

from kvrt.errors import CapacityError, OutOfMemory
from kvrt.executor.headroom import SMALL_BYTES
from kvrt.model.decoder.activations import Activations
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import AttentionBatch, Chunk, Device, MemoryInfo
from kvrt.wrappers.parts import Params, Result, WrappedMemory
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime, until

MIB = 1 << 20


class Machine(Wrapper):
    """A device in the memory of a machine: `whole` bytes, of which others hold `taken`. Or of which
    `free` are free, whatever anybody holds."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.whole = 1 << 30
        self.taken = 0
        self.free: int | None = None
        self.largest = 0
        machine, total = self, inner.info.total_bytes

        class Memory(WrappedMemory):
            def info(self) -> MemoryInfo:
                chunks = super().info().chunks
                free = max(0, machine.whole - machine.taken - chunks)
                free = free if machine.free is None else machine.free
                return MemoryInfo(total, free, chunks, machine.taken)

        self.memory = Memory(self, inner.memory)

    def around(
        self,
        name: str,
        call: Callable[Params, Result],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Result:
        if name == "attention.plan":
            (batch,) = args
            assert isinstance(batch, AttentionBatch)
            self.largest = max(self.largest, int(batch.query_start[-1]))
        return call(*args, **kwargs)


@pytest.fixture
def machine(break_device: Break) -> list[Machine]:
    """Of the runtimes that are made from here on, the last one's."""
    made: list[Machine] = []

    def wrapped(inner: Device) -> Device:
        made[:] = [Machine(inner)]
        return made[0]

    break_device(wrapped)
    return made


def test_a_step_that_would_take_more_than_is_free_is_done_in_pieces(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    runtime = make_runtime(max_batch_tokens=20_000, debug=False)
    prompts = [[n + 1] * 200 for n in range(22)]
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    whole = [result.token_ids for result in runtime.generate(prompts, params)]
    runtime.invalidate()
    token_bytes = Activations.width(runtime.model.spec) * 4
    assert machine[0].largest * token_bytes > SMALL_BYTES + 4 * MIB, "or this shows nothing"
    machine[0].free, machine[0].largest = SMALL_BYTES, 0
    runtime.generate([[5]], params)  # a small step: the large one's memory has gone
    assert [result.token_ids for result in runtime.generate(prompts, params)] == whole
    assert 0 < machine[0].largest * token_bytes <= SMALL_BYTES


PARAMS = SamplingParams(max_tokens=300, ignore_eos=True)
PROMPTS = [[n + 1] * 200 for n in range(6)]


def test_pages_go_while_others_need_the_memory_and_requests_go_on_with_the_same_text(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    runtime = make_runtime(memory_limit="200MiB")
    alone = [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)]
    runtime.invalidate()
    asked = runtime.stats().cache.asked_bytes
    streams = [runtime.stream(prompt, PARAMS) for prompt in PROMPTS]
    until(lambda: held(runtime) > 20 * MIB)
    machine[0].taken = machine[0].whole - 50 * MIB
    until(lambda: runtime.stats().cache.limit_bytes < asked)
    lower = runtime.stats().cache.limit_bytes
    assert lower < 20 * MIB
    until(lambda: held(runtime) <= lower)
    machine[0].taken = 0
    until(lambda: runtime.stats().cache.limit_bytes == asked)
    assert [stream.result.token_ids for stream in streams] == alone
    runtime.cache.check_integrity()


def test_a_request_waits_for_memory_that_others_have_while_shorter_ones_pass(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    """For as long as they have it; it holds nothing meanwhile, and can be left."""
    runtime = make_runtime(memory_limit="200MiB", keep_warm=0)
    stream = runtime.stream([7] * 200, SamplingParams(max_tokens=700, ignore_eos=True))
    until(lambda: held(runtime) > 6 * MIB)
    machine[0].taken = machine[0].whole
    until(lambda: held(runtime) <= runtime.cache.min_bytes)
    left = runtime.stream([7] * 200, SamplingParams(max_tokens=700))
    left.close()
    for number in range(3):
        (short,) = runtime.generate([[number + 1, 2, 3]], SamplingParams(max_tokens=4))
        assert short.error is None
    assert [waiting.why for waiting in runtime.queue()] == ["memory"]
    machine[0].taken = 0
    assert stream.result.error is None
    assert len(stream.result.token_ids) == 700
    assert stream.result.usage.preemptions >= 1


def test_what_nobody_else_has_is_not_waited_for(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    runtime = make_runtime(memory_limit="200MiB")
    runtime.generate([[1]], SamplingParams(max_tokens=1))
    machine[0].whole = runtime.cache.held_bytes + 4 * MIB
    (result,) = runtime.generate([[7] * 200], SamplingParams(max_tokens=700, ignore_eos=True))
    assert isinstance(result.error, CapacityError)
    (short,) = runtime.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
    assert short.error is None


def test_what_is_only_cached_goes_while_nothing_runs_and_the_limit_comes_back(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    runtime = make_runtime(keep_warm=0)
    asked = runtime.stats().cache.asked_bytes
    runtime.generate([[n + 1] * 300 for n in range(6)], SamplingParams(max_tokens=2))
    assert held(runtime) > 20 * MIB
    machine[0].taken = machine[0].whole
    until(lambda: held(runtime) <= runtime.cache.min_bytes)
    assert runtime.stats().cache.limit_bytes < asked
    machine[0].taken = 0
    until(lambda: runtime.stats().cache.limit_bytes == asked)


def test_a_device_that_refuses_before_anybody_looked_is_a_machine_that_runs_short(
    make_runtime: MakeRuntime, machine: list[Machine], caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make_runtime(memory_limit="200MiB", keep_warm=0)
    runtime.generate([[1]], SamplingParams(max_tokens=1))
    device, create = machine[0], machine[0].memory.create
    refused: list[int] = []

    def once() -> Chunk:
        if refused:
            return create()
        refused.append(1)
        device.taken = device.whole
        raise OutOfMemory("no memory for another chunk", needed=2 * MIB)

    device.memory.create = once  # type: ignore[method-assign]
    stream = runtime.stream([7] * 300, SamplingParams(max_tokens=20, ignore_eos=True))
    until(lambda: runtime.cache.squeezed)
    device.taken = 0
    assert stream.result.error is None
    assert refused
    assert not any("the device is out of memory" in each.getMessage() for each in caplog.records)


def held(runtime: Runtime) -> int:
    cache = runtime.stats().cache
    return cache.mapped_bytes + cache.pooled_bytes
