"""A machine whose memory runs short while requests run, as the system says it."""

from collections.abc import Callable

import pytest

from kvrt.executor.headroom import SMALL_BYTES
from kvrt.model.decoder.activations import Activations
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import AttentionBatch, Device, MemoryInfo
from kvrt.wrappers.parts import Params, Result, WrappedMemory
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime, until

MIB = 1 << 20


class Machine(Wrapper):
    """A device in the memory of a machine, whose others leave `room` bytes; or of which `free` are
    free, whatever it holds."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.room = 1 << 30
        self.free: int | None = None
        self.largest = 0
        machine, total = self, inner.info.total_bytes

        class Memory(WrappedMemory):
            def info(self) -> MemoryInfo:
                chunks = super().info().chunks
                free = max(0, machine.room - chunks) if machine.free is None else machine.free
                return MemoryInfo(total, free, chunks)

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


def test_pages_go_while_others_need_the_memory_and_requests_go_on_with_the_same_text(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    params = SamplingParams(max_tokens=300, ignore_eos=True)
    prompts = [[n + 1] * 200 for n in range(6)]
    runtime = make_runtime(memory_limit="200MiB")
    alone = [result.token_ids for result in runtime.generate(prompts, params)]
    runtime.invalidate()
    asked = runtime.stats().cache.asked_bytes
    streams = [runtime.stream(prompt, params) for prompt in prompts]
    until(lambda: held(runtime) > 20 * MIB)
    machine[0].room = 50 * MIB
    until(lambda: runtime.stats().cache.limit_bytes < asked)
    lower = runtime.stats().cache.limit_bytes
    assert lower < 20 * MIB
    until(lambda: held(runtime) <= lower)
    machine[0].room = 1 << 30
    until(lambda: runtime.stats().cache.limit_bytes == asked)
    assert [stream.result.token_ids for stream in streams] == alone
    runtime.cache.check_integrity()


def test_what_is_only_cached_goes_while_nothing_runs(
    make_runtime: MakeRuntime, machine: list[Machine]
) -> None:
    runtime = make_runtime(keep_warm=0)
    runtime.generate([[n + 1] * 300 for n in range(6)], SamplingParams(max_tokens=2))
    assert held(runtime) > 20 * MIB
    machine[0].room = 0
    until(lambda: held(runtime) <= runtime.cache.min_bytes)
    machine[0].room = 1 << 30
    (result,) = runtime.generate([[7] * 300], SamplingParams(max_tokens=2))
    assert result.error is None


def held(runtime: Runtime) -> int:
    cache = runtime.stats().cache
    return cache.mapped_bytes + cache.pooled_bytes
