"""What requests that wait cost each step of those that run.

pytest tests/bench/test_bench_waiting.py --benchmark-enable --benchmark-only
"""

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.config import RuntimeConfig
from kvrt.engine.assembly import make_reuse
from kvrt.engine.engine import Engine
from kvrt.engine.request import Request
from kvrt.engine.sizing import make_cache
from kvrt.errors import KvrtError
from kvrt.kv.memory import Memory
from kvrt.kv.tiers.names import chain
from kvrt.model.loader import load_model
from kvrt.registry import load
from kvrt.sampling import SamplingParams
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.spi import DeviceOptions

pytestmark = pytest.mark.extra  # minutes, so only `make bench` runs them

RUNNING, STEPS, LENGTH = 8, 60, 1000
ROOT = b"root" * 8


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    config = RuntimeConfig(model="tiny", memory_limit="256MiB", max_running=RUNNING)
    with ExitStack() as stack:
        device = load("cpu").open(0, DeviceOptions(threads=1))
        stack.callback(device.close)
        model = load_model("tiny", device)
        executor, cache = make_cache(config, device, model)
        stack.callback(cache.close)
        limits = Limits(config.max_batch_tokens, config.max_running)
        memory = Memory(cache, make_reuse(config, cache))
        yield Engine(model, executor, memory, limits, POLICIES[request.param])


def asked(prompt: list[int], new: int) -> Request:
    return Request(
        id="",
        prompt=tuple(prompt),
        params=SamplingParams(max_tokens=new, ignore_eos=True),
        seed=1,
        max_len=len(prompt) + new,
        priority=0,
        root=ROOT,
        names=tuple(chain(ROOT, prompt[:-1], 16)),
        detokenizer=lambda: None,
        deliver=lambda _: None,
    )


def steps(engine: Engine) -> list[float]:
    """Processor time of steps in which nothing comes or goes, in milliseconds."""
    taken = []
    for _ in range(STEPS):
        begun = time.thread_time()
        engine.step()
        taken.append((time.thread_time() - begun) * 1e3)
    return taken


@pytest.mark.benchmark(
    group="waiting: a step (limit: 1 ms more than with none waiting, 10 at most)"
)
@pytest.mark.parametrize("engine", ["fcfs", "priority"], indirect=True)
@pytest.mark.parametrize("waiting", [5_000, 20_000])
@pytest.mark.parametrize("alike", [False, True], ids=["different", "alike"])
def test_a_step_beside_many_that_wait(
    benchmark: BenchmarkFixture, engine: Engine, waiting: int, alike: bool
) -> None:
    """Prompts of 1,000 tokens, which have nothing or 960 tokens in common; eight others run."""
    rng = random.Random(1)
    for _ in range(RUNNING):
        engine.add(asked(rng.choices(range(1, 4000), k=20), 900))
    engine.step()
    alone = steps(engine)
    common = rng.choices(range(1, 4000), k=960 if alike else 0)
    for _ in range(waiting):
        own = rng.choices(range(1, 4000), k=LENGTH - 4 - len(common))
        engine.add(asked(common + own, 4))
    beside: list[float] = []
    benchmark.pedantic(lambda: beside.extend(steps(engine)), rounds=1)
    begun = time.thread_time()
    engine.abort_all(KvrtError("enough"))
    benchmark.extra_info |= {
        "alone ms": f"{statistics.median(alone):.2f}",
        "beside ms": f"{statistics.median(beside):.2f}",
        "longest alone ms": f"{max(alone):.2f}",
        "longest beside ms": f"{max(beside):.2f}",
        "ending all ms": f"{(time.thread_time() - begun) * 1e3:.0f}",
    }
    assert statistics.median(beside) < statistics.median(alone) + 1
    assert max(beside) < max(alone) + 10
