"""Every family that there is: two ranks say what one process says of its files, or it is refused,
before any weight is read, with what about it cannot be cut."""

from pathlib import Path

import pytest

from kvrt.errors import ConfigError
from kvrt.model.shard import Shard
from kvrt.sampling import SamplingParams
from tests.features import specs
from tests.model.checkpoints import FAMILIES, make_model, save_model

from .conftest import MakeRuntime, ranks_here
from .test_fast import same_but_for_ties

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
PROMPTS = [[7, 8, 9] * 9, [5], [*range(40)]]

UNCUT: dict[str, tuple[str, ...]] = {
    "layers with a recurrence": (
        "bamba",
        "falcon-h1",
        "falcon-h1-normed",
        "granite-4",
        "granite-4-moe",
        "kimi-linear",
        "lfm-2",
        "lfm-2-moe",
        "nemotron-3",
        "nemotron-h",
        "olmo-hybrid",
        "qwen-3-next",
        "qwen-3.5",
        "qwen-3.5-moe",
    ),
    "latent attention": (
        "deepseek-2",
        "deepseek-2-lite",
        "deepseek-3",
        "glm-4.7-flash",
        "mistral-4",
        "moonlight",
        "youtu",
    ),
    "heads of two shapes": ("gemma-4",),
    "norms of its experts": ("gemma-4-moe",),
    "norms over all heads together": (
        "minimax-m2",
        "olmo-2",
        "olmo-3",
        "olmoe",
    ),
    "cannot be dealt out evenly": ("smollm-2",),
}
"""Families that are refused by their shape: by why."""

SCATTERED = dict.fromkeys(("gpt-neox", "gpt-neox-sequential", "gpt-2"), "in another order")
"""Those of whose files some tensor's rows are not one after the other, and why."""


def test_families_that_cannot_be_cut_are_these() -> None:
    found = {}
    for name, shape in zip(FAMILIES, specs(), strict=True):
        try:
            Shard(parts=2).check(shape)
        except ConfigError as error:
            found[name] = str(error)
    wanted = {name: reason for reason, names in UNCUT.items() for name in names}
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert reason in found[name]


@pytest.mark.extra
@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_say_what_one_process_says(
    name: str, tmp_path: Path, make_runtime: MakeRuntime
) -> None:
    model = save_model(make_model(name), tmp_path)
    options = {"model": model, "load_format": "auto", "tensor_parallel": 2}
    uncut = {name: reason for reason, names in UNCUT.items() for name in names}
    if reason := uncut.get(name) or SCATTERED.get(name):
        with pytest.raises(ConfigError, match=reason):
            make_runtime(**options)
        assert ranks_here() == []
        return
    several = make_runtime(**options)
    fast = make_runtime(**options, tensor_parallel_mode="fast")
    one = make_runtime(**options | {"tensor_parallel": 1})
    right, found, near = (
        [result.completions[0] for result in each.generate(PROMPTS, GREEDY)]
        for each in (one, several, fast)
    )
    assert found == right
    assert same_but_for_ties(right, near, tie=1e-3) > 0.5
