"""A runtime on the bundled model, for coroutines."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

import kvrt
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

PROMPT = 'def read_lines(path):\n    """'
LONG = SamplingParams(max_tokens=600, ignore_eos=True)
SHORT = SamplingParams(max_tokens=24, ignore_eos=True)

Play = Callable[[Callable[[kvrt.AsyncRuntime], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", memory_limit="256MiB", seed=1) as runtime:
        yield runtime


@pytest.fixture
def play(tiny: Runtime) -> Play:
    """Run a coroutine on a loop of its own, with the runtime; afterwards no request is left."""

    def run(scene: Callable[[kvrt.AsyncRuntime], Awaitable[None]]) -> None:
        async def whole() -> None:
            await scene(kvrt.AsyncRuntime(tiny))
            await until(lambda: not tiny.busy and tiny.stats().cache.used_pages == 0)

        asyncio.run(asyncio.wait_for(whole(), 120))

    return run


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)
