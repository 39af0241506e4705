"""Pages that last, on an emulated GPU: reused, moved to the host and to disk, and saved."""

from pathlib import Path

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.emulator.inside.conftest import MIB
from tests.emulator.library import Emulator

PROMPTS = [[n, *range(90)] for n in range(14)]
GREEDY = SamplingParams(max_tokens=3, ignore_eos=True)


def make(model: Path, backend: str, **options: object) -> Runtime:
    return Runtime(
        model, backend=backend, load_format="dummy", seed=1, memory_limit=7 * MIB,
        max_batch_tokens=64, max_running=4, debug=True, preemption="move",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def ask(runtime: Runtime) -> tuple[list[tuple[int, ...]], int]:
    """Answers, and how many tokens of the prompts were cached."""
    results = runtime.generate(PROMPTS, GREEDY)
    assert [result.error for result in results] == [None] * len(PROMPTS)
    cached = sum(result.usage.cached_tokens for result in results)
    return [result.token_ids for result in results], cached


def close(runtime: Runtime) -> None:
    runtime.close()
    runtime.device.close()


@pytest.fixture
def right(model: Path) -> list[tuple[int, ...]]:
    runtime = make(model, "cpu")
    answers, _ = ask(runtime)
    close(runtime)
    return answers


@pytest.mark.parametrize("deferred", [0, 1])
@pytest.mark.parametrize("tiers", ["host:16MiB", "disk:{}:16MiB"])
def test_pages_that_moved_give_the_tokens_of_the_cpu_backend(
    tiers: str,
    deferred: int,
    model: Path,
    emulator: Emulator,
    right: list[tuple[int, ...]],
    tmp_path: Path,
) -> None:
    emulator.set(deferred=deferred)
    runtime = make(model, emulator.name, offload=tiers.format(tmp_path))
    assert ask(runtime)[0] == right
    answers, cached = ask(runtime)
    stats = runtime.stats().offload
    close(runtime)
    assert answers == right
    assert cached > 0
    assert stats is not None
    assert stats.fetched_pages > 0


def test_pages_that_were_saved_give_the_tokens_of_the_cpu_backend(
    model: Path, vendor: str, right: list[tuple[int, ...]], tmp_path: Path
) -> None:
    for expected in (False, True):
        runtime = make(model, vendor, cache_dir=tmp_path)
        answers, cached = ask(runtime)
        close(runtime)
        assert answers == right
        assert (cached > 0) == expected
