"""Planning a step, with no device: what the engine's thread does before anything runs."""

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits, StepPlan
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting

RUNNING = 256
LIMITS = Limits(max_batch_tokens=2048, max_running=512)
GEOMETRY = Geometry(
    page_bytes=360 << 10, page_size=16, chunk_bytes=2 << 20, pages=100_000,
)  # fmt: skip


def sequences(first: int, count: int, length: int) -> list[Seq]:
    return [
        Seq(id=n, tokens=[0] * (length + n % 16), prompt_len=length, max_len=4096, arrival=n)
        for n in range(first, first + count)
    ]


@pytest.mark.benchmark(
    group="scheduler: plan a step (limit: 1 ms with none waiting; with three groups of layers 1.5)"
)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("waiting", [0, 64])
def test_a_step_with_256_running(benchmark: BenchmarkFixture, waiting: int, groups: int) -> None:
    running = sequences(1, RUNNING, 500)
    for seq in running:
        seq.computed = len(seq.tokens) - 1
    queue = Waiting(POLICIES["fcfs"])
    for seq in sequences(1000, waiting, 100):
        queue.append(seq)
    shapes = [replace(GEOMETRY, page_bytes=size << 10) for size in (360, 120, 24)[:groups]]
    table = PageTable.empty([Group(each) for each in shapes], GEOMETRY.chunks).table
    grown = table.grow({seq.id: seq.computed for seq in running})
    assert isinstance(grown, Change)

    def plan() -> StepPlan:
        return plan_step(grown.table, running, queue, LIMITS, 1)

    result = benchmark(plan)
    assert len(result.rows) >= RUNNING
