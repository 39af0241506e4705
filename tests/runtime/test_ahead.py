"""On a device that is still computing when the host is done, the next step is planned meanwhile."""

import random
from pathlib import Path

import pytest

from kvrt.engine.engine import Engine
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sched.plan import StepPlan
from kvrt.spi import Ticket
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime

CHUNK = 2 << 20


class Late:
    """A ticket that is not done until somebody waits for it."""

    def __init__(self, inner: Ticket) -> None:
        self._inner = inner
        self._waited = False

    def done(self) -> bool:
        return self._waited

    def wait(self, timeout: float | None = None) -> bool:
        self._waited = self._inner.wait(timeout)
        return self._waited


class Asynchronous(Wrapper):
    def fence(self) -> Ticket:
        return Late(super().fence())


def prompt(number: int) -> list[int]:
    rng = random.Random(number)
    return [rng.randrange(199) for _ in range(1 + 11 * (number % 9))]


PROMPTS = [prompt(number) for number in range(24)]
PARAMS = [
    SamplingParams(max_tokens=4 + 30 * (n % 8), ignore_eos=True, n=1 + (n % 8 == 0), seed=n,
                   temperature=float(n % 3), logprobs=1)
    for n in range(24)
]  # fmt: skip


def said(runtime: Runtime) -> list[object]:
    results = runtime.generate(PROMPTS, PARAMS)
    assert all(result.error is None for result in results)
    return [[(c.token_ids, c.logprobs, c.finish_reason) for c in r.completions] for r in results]


Plans = list[StepPlan | None]


def spy(monkeypatch: pytest.MonkeyPatch) -> Plans:
    plans: Plans = []
    plan = Engine._plan_ahead

    def spied(engine: Engine) -> StepPlan | None:
        plans.append(plan(engine))
        return plans[-1]

    monkeypatch.setattr(Engine, "_plan_ahead", spied)
    return plans


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Plans:
    """The plans that were made while a step was in flight."""
    return spy(monkeypatch)


@pytest.fixture(scope="module")
def want(tiny_lm: Path) -> list[object]:
    with (
        pytest.MonkeyPatch.context() as patched,
        Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1) as runtime,
    ):
        plans = spy(patched)
        answers = said(runtime)
        assert not plans, "the CPU has computed when it returns"
        return answers


@pytest.mark.promise("P15")
@pytest.mark.parametrize("chunks", [None, 4])
@pytest.mark.parametrize("max_batch_tokens", [16, 512])
def test_planning_ahead_changes_no_answer(
    chunks: int | None,
    max_batch_tokens: int,
    make_runtime: MakeRuntime,
    break_device: Break,
    ahead: Plans,
    want: list[object],
) -> None:
    break_device(Asynchronous)
    runtime = make_runtime(max_batch_tokens=max_batch_tokens)
    if chunks is not None:  # too little for all: sequences are preempted
        runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)
    assert said(runtime) == want
    assert len([plan for plan in ahead if plan is not None]) > 10
    if chunks is not None:
        assert None in ahead, "a plan that preempts is not made ahead"
    runtime.cache.check_integrity()
    assert runtime.stats().cache.used_pages == 0


def test_a_step_is_not_planned_ahead_of_what_may_be_guessed(
    make_runtime: MakeRuntime, break_device: Break
) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True, speculate=4)
    want = make_runtime().generate([[1, 2, 3, 4] * 20], params)[0]
    break_device(Asynchronous)
    got = make_runtime().generate([[1, 2, 3, 4] * 20], params)[0]
    assert got.token_ids == want.token_ids
    assert want.usage.drafted_tokens > 0
    assert got.usage.drafted_tokens > 0


def test_what_is_aborted_or_stopped_while_it_is_planned_loses_its_pages(
    make_runtime: MakeRuntime, break_device: Break, ahead: Plans
) -> None:
    break_device(Asynchronous)
    runtime = make_runtime()
    params = SamplingParams(max_tokens=400, ignore_eos=True)
    rng = random.Random(5)
    for _ in range(12):
        streams = [runtime.stream(PROMPTS[rng.randrange(24)], params) for _ in range(4)]
        for number, stream in enumerate(streams):
            for _ in range(rng.randrange(1, 12)):
                next(stream)
            if number % 2:
                stream.close()
        for stream in streams:
            runtime.abort(stream.request_id)
            assert stream.wait().finish_reason == "abort"
    assert any(ahead)
    runtime.cache.check_integrity()
    assert runtime.stats().cache.used_pages == 0
