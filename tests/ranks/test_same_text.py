"""Several ranks say what one process says, byte for byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ConfigError, ModelError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeModel, MakeRuntime, ranks_here
from .families import FAMILIES

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
PROMPTS = [[7, 8, 9] * 9, [5], [*range(40)], [7, 8, 9] * 9 + [3]]

TWO = {"parts": {"tensor_parallel": 2}, "stages": {"pipeline_parallel": 2}}


def said(runtime: Runtime, params: SamplingParams = GREEDY) -> list[Any]:
    """What is said, and how likely each token was, to the last bit."""
    results = runtime.generate(PROMPTS, params)
    assert [result.error for result in results] == [None] * len(PROMPTS)
    return [result.completions for result in results]


def both(make_runtime: MakeRuntime, ranks: dict[str, int], **options: Any) -> Sequence[Any]:
    """What one process says, and several ranks do."""
    return [said(make_runtime(**options, **more)) for more in ({}, ranks)]


@pytest.mark.parametrize("ranks", TWO.values(), ids=TWO)
def test_two_ranks_say_what_one_process_says(
    ranks: dict[str, int], make_runtime: MakeRuntime
) -> None:
    one, two = make_runtime(), make_runtime(**ranks)
    assert len(ranks_here()) == 1
    assert said(one) == said(two)
    drawn = SamplingParams(max_tokens=12, temperature=0.9, seed=3, logprobs=1)
    assert said(one, drawn) == said(two, drawn)
    whole, own = one.stats().cache, two.stats().cache
    if ranks == TWO["parts"]:
        assert own.page_bytes * 2 == whole.page_bytes
    else:  # of three layers, a stage has two at most
        assert own.page_bytes * 3 == whole.page_bytes * 2
    assert two.model.weight_bytes < 0.7 * one.model.weight_bytes


def test_ranks_have_some_of_the_experts_each(
    make_model: MakeModel, make_runtime: MakeRuntime
) -> None:
    """Of five, one rank has two and the other three; not every token has some of each."""
    model = make_model(architectures=["MixtralForCausalLM"], num_local_experts=5)
    one, two = make_runtime(model=model), make_runtime(model=model, tensor_parallel=2)
    assert said(one) == said(two)
    assert two.model.weight_bytes < 0.7 * one.model.weight_bytes


@pytest.mark.extra
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "ranks",
    [*TWO.values(), {"tensor_parallel": 2, "pipeline_parallel": 2}, {"tensor_parallel": 4},
     {"pipeline_parallel": 3}],
    ids=lambda ranks: "-".join(map(str, ranks.values())) + next(iter(ranks)),
)  # fmt: skip
def test_ranks_say_the_same_of_every_family(
    family: str,
    ranks: dict[str, int],
    make_model: MakeModel,
    make_runtime: MakeRuntime,
) -> None:
    one, several = both(make_runtime, ranks, model=make_model(**FAMILIES[family]))
    assert one == several


@pytest.mark.extra
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"kv_cache_dtype": "int8"},
        {"quantize": "int8"},
        {"quantize": "int4", "activations": "exact"},
        {"speculate": "ngram:3"},
        {"max_batch_tokens": 7},
        {"page_size": 8, "prefix_cache": False},
    ],
    ids=lambda options: "-".join(f"{name}-{value}" for name, value in options.items()),
)
@pytest.mark.parametrize(
    "ranks",
    [*TWO.values(), {"tensor_parallel": 2, "pipeline_parallel": 2}],
    ids=[*TWO, "both"],
)
def test_ranks_say_the_same_whatever_the_options(
    options: dict[str, object],
    ranks: dict[str, int],
    make_model: MakeModel,
    make_runtime: MakeRuntime,
) -> None:
    wide = make_model(hidden_size=256, intermediate_size=512)
    one, several = both(make_runtime, ranks, model=wide, **options)
    assert one == several


REFUSED = [
    ({"num_attention_heads": 6, "num_key_value_heads": 3}, {"tensor_parallel": 2}, "evenly"),
    ({}, {"pipeline_parallel": 4}, "3 layers"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 2}, {"tensor_parallel": 4},
     "2 experts"),
    ({"architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 32, "kv_lora_rank": 448,
      "qk_rope_head_dim": 64, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
      "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
     {"tensor_parallel": 2}, "latent attention"),
    ({"architectures": ["Lfm2ForCausalLM"], "norm_eps": 1e-5,
      "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
     {"pipeline_parallel": 2}, "recurrence"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "ranks", "why"), REFUSED, ids=[why for *_, why in REFUSED])
def test_a_model_that_cannot_be_cut_is_refused_by_what_it_has(
    fields: dict[str, object],
    ranks: dict[str, int],
    why: str,
    make_model: MakeModel,
    make_runtime: MakeRuntime,
) -> None:
    with pytest.raises(ConfigError, match=why):
        make_runtime(model=make_model(**fields), **ranks)
    assert ranks_here() == []


def test_what_only_one_process_does_is_refused_by_its_name(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    for name in ("share", "draft_model", "offload_experts"):
        with pytest.raises(ConfigError, match=name):
            make_runtime(**{name: "1GiB"}, tensor_parallel=2)
    runtime = make_runtime(tensor_parallel=2)
    with pytest.raises(ConfigError, match="several ranks"):
        runtime.sleep(2)
    with pytest.raises(ModelError, match="several ranks"):
        runtime.load_adapter("one", tmp_path)
    runtime.sleep(1)
    assert len(said(runtime)) == len(PROMPTS)
