"""A plan says what a runtime then does."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrt.engine.planning import Plan, plan
from kvrt.model.choice import choose
from kvrt.model.source import open_source
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import CONFIG, Break, MakeRuntime
from .test_step_memory import Small

FREE = 40 << 20
LENGTH = 400
OPTIONS: dict[str, Any] = {"memory_limit": None, "max_batch_tokens": 64, "prefix_cache": False}
WINDOWS = {
    "architectures": ["Olmo3ForCausalLM"],
    "num_hidden_layers": 4,
    "sliding_window": 32,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
}


def planned(runtime: Runtime, free: int) -> Plan:
    source = open_source(runtime.model.path)
    choice = choose(source, None, runtime.device)
    return plan(runtime.config, runtime.device_info, choice, free + choice.weight_bytes)


def preemptions(runtime: Runtime, texts: int) -> int:
    """How often a text had to stop for another, of some that grow to `LENGTH` tokens together."""
    prompts = [[7 + n] * 16 for n in range(texts)]
    results = runtime.generate(prompts, SamplingParams(max_tokens=LENGTH - 16, ignore_eos=True))
    assert {result.error for result in results} == {None}
    return sum(result.usage.preemptions for result in results)


@pytest.mark.parametrize("changes", [{}, WINDOWS], ids=["all", "windows"])
def test_as_many_texts_run_together_as_are_planned_and_no_more(
    make_runtime: MakeRuntime, break_device: Break, tmp_path: Path, changes: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    break_device(lambda device: Small(device, FREE))
    runtime = make_runtime(model=tmp_path, **OPTIONS)
    plan = planned(runtime, FREE)
    assert plan.kv == runtime.stats().cache.limit_bytes
    texts = plan.texts(LENGTH)
    assert texts > 1
    assert preemptions(runtime, texts) == 0
    if not changes:  # windows take off what they no longer see at different times
        assert preemptions(runtime, texts + 1) > 0


def test_a_plan_without_room_has_no_texts(make_runtime: MakeRuntime) -> None:
    plan = planned(make_runtime(), 1 << 20)
    assert plan.kv == 0
    assert plan.texts(LENGTH) == 0
