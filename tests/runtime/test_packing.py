"""A limit that is lowered while requests run: what has room in it goes on."""

import pytest

from kvrt import SamplingParams
from kvrt.engine.events import StepDone

from .conftest import MakeRuntime

CHUNK = 2 << 20
LONG, SHORT = (SamplingParams(max_tokens=n, ignore_eos=True) for n in (300, 150))
LIMIT = 34 * CHUNK


@pytest.mark.promise("P4")
@pytest.mark.parametrize("options", [{}, {"prefix_cache": False}, {"offload": "host:64MiB"}])
def test_memory_goes_back_while_those_that_run_go_on_with_the_same_text(
    make_runtime: MakeRuntime, options: dict[str, object]
) -> None:
    """Of 48 requests twelve are long: once the others have ended, theirs lies here and there."""
    prompts = [[n, *range(6)] for n in range(48)]
    params = [LONG if n % 4 == 0 else SHORT for n in range(48)]
    alone = [result.token_ids for result in make_runtime().generate(prompts, params)]
    runtime = make_runtime(max_running=48, **options)
    held: list[int] = []  # bytes, after each step in which the twelve ran

    def look(event: object) -> None:
        if isinstance(event, StepDone) and event.running == 12:
            if not held:
                runtime.set_memory_limit(runtime.model.weight_bytes + LIMIT)
            held.append(runtime.stats().cache.mapped_bytes)

    runtime.add_observer(look)
    streams = [runtime.stream(*each) for each in zip(prompts, params, strict=True)]
    results = [stream.wait() for stream in streams]
    assert [result.token_ids for result in results] == alone
    assert not any(result.usage.preemptions for result in results)
    assert held[0] > 50 * CHUNK
    assert max(held[2:100]) <= LIMIT
    assert runtime.stats().cache.copies > 10
