"""The fast mode: ranks add up what they have made, and say each other less for it. Text is the same
but where two tokens are all but equally likely."""

from collections.abc import Sequence
from typing import Any

import pytest

from kvrt.errors import ConfigError
from kvrt.outputs import Completion
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeModel, MakeRuntime, ranks_here
from .families import FAMILIES
from .wire import in_a_step

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2)
PROMPTS = [[7, 8, 9] * 9, [5], [*range(40)], [7, 8, 9] * 9 + [3]]
FAST = "fast"

TIE = 1e-4
"""Tokens are equally likely whose log-probabilities differ by less. In float32, another order of
additions changes them by about 1e-6."""


def said(runtime: Runtime) -> list[Completion]:
    results = runtime.generate(PROMPTS, GREEDY)
    assert [result.error for result in results] == [None] * len(PROMPTS)
    return [result.completions[0] for result in results]


def same_but_for_ties(
    exact: Sequence[Completion], fast: Sequence[Completion], tie: float = TIE
) -> float:
    """Assert it.

    Returns:
        How many of all tokens were compared: behind a tie there is another text.
    """
    compared = 0
    for one, other in zip(exact, fast, strict=True):
        assert one.logprobs
        assert other.logprobs
        for right, found in zip(one.logprobs, other.logprobs, strict=True):
            if right.token_id != found.token_id:
                (_, first), (_, second) = right.top
                assert first - second < tie
                assert found.token_id in {token for token, _ in right.top}
                break
            assert found.logprob == pytest.approx(right.logprob, abs=tie)
            compared += 1
    return compared / sum(len(one.token_ids) for one in exact)


def both(make_runtime: MakeRuntime, ranks: dict[str, int], **options: Any) -> Any:
    """What one process says, and ranks do in the fast mode."""
    one = make_runtime(**options)
    several = make_runtime(**options, **ranks, tensor_parallel_mode=FAST)
    return said(one), said(several)


def test_text_is_the_same_but_for_ties(make_runtime: MakeRuntime) -> None:
    one, two = make_runtime(), make_runtime(tensor_parallel=2, tensor_parallel_mode=FAST)
    assert same_but_for_ties(said(one), said(two)) > 0.9
    whole, own = one.stats().cache, two.stats().cache
    assert own.page_bytes * 2 == whole.page_bytes
    assert two.model.weight_bytes < 0.7 * one.model.weight_bytes


@pytest.mark.extra
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "ranks",
    [{"tensor_parallel": 2}, {"tensor_parallel": 4},
     {"tensor_parallel": 2, "pipeline_parallel": 2}],
    ids=["2", "4", "2x2"],
)  # fmt: skip
def test_every_family_is_the_same_but_for_ties(
    family: str,
    ranks: dict[str, int],
    make_model: MakeModel,
    make_runtime: MakeRuntime,
) -> None:
    assert same_but_for_ties(*both(make_runtime, ranks, model=make_model(**FAMILIES[family]))) > 0.9


@pytest.mark.extra
@pytest.mark.parametrize(
    ("options", "tie"),
    [
        ({"kv_cache_dtype": "int8"}, 0.02),
        ({"dtype": "bfloat16"}, 0.05),
        ({"quantize": "int8", "activations": "exact"}, TIE),
        ({"quantize": "int4"}, 0.05),
        ({"speculate": "ngram:3"}, TIE),
        ({"max_batch_tokens": 7}, TIE),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_options_change_nothing_of_that(
    options: dict[str, object],
    tie: float,
    make_model: MakeModel,
    make_runtime: MakeRuntime,
) -> None:
    """What is rounded to codes or to bfloat16 differs by more where a number is near the middle of
    two of those."""
    wide = make_model(hidden_size=256, intermediate_size=512)
    ranks = {"tensor_parallel": 4}
    assert same_but_for_ties(*both(make_runtime, ranks, model=wide, **options), tie) > 0.5


@pytest.mark.extra
@pytest.mark.parametrize("ranks", [2, 4])
def test_less_is_said_than_in_the_exact_mode(
    ranks: int, make_model: MakeModel, make_runtime: MakeRuntime
) -> None:
    """By the shape of Llama 3.1: 4 numbers for each of `hidden` in place of 6.5, and half the
    calls. The embedding and the logits are said besides."""
    hidden, vocab, layers = 512, 64, 8
    model = make_model(
        hidden_size=hidden, intermediate_size=7 * hidden // 2, vocab_size=vocab,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    exact, fast = (
        in_a_step(make_runtime, model=model, tensor_parallel=ranks, tensor_parallel_mode=mode)
        for mode in ("exact", FAST)
    )
    assert (exact.calls, fast.calls) == (4 * layers + 2, 2 * layers + 2)
    share = 4 * (ranks - 1) / ranks  # bytes of float32, of what is not here already
    logits = vocab * share
    exact_bytes = layers * 6.5 * hidden * share + 4 * (ranks - 1) * hidden + logits
    fast_bytes = (layers * 4 + 2) * hidden * share + logits
    for said, numbers in ((exact, exact_bytes), (fast, fast_bytes)):
        assert 0 <= said.received - numbers <= 64 * said.segments  # Gloo's own word of each message
    assert fast.received < 0.75 * exact.received


@pytest.mark.extra
def test_pages_of_the_two_modes_are_never_taken_for_each_other(make_runtime: MakeRuntime) -> None:
    names = [
        make_runtime(tensor_parallel=2, tensor_parallel_mode=mode).model.fingerprint
        for mode in ("exact", FAST)
    ]
    assert names[0] != names[1]


def test_one_rank_has_no_fast_mode(make_runtime: MakeRuntime) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_mode is fast, and tensor_parallel is 1"):
        make_runtime(tensor_parallel_mode=FAST)


def test_codes_that_share_a_scale_are_not_torn_apart(
    make_model: MakeModel, make_runtime: MakeRuntime
) -> None:
    model = make_model(hidden_size=64, intermediate_size=96)
    with pytest.raises(ConfigError, match=r"columns 0 to 48 of model\.layers\.0\.mlp\.down_proj"):
        make_runtime(model=model, quantize="int8", tensor_parallel=2, tensor_parallel_mode=FAST)
    assert ranks_here() == []
