"""`generate` over kvrt's pages, beside transformers' own cache and attention."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from kvrt import CapacityError, ConfigError
from kvrt.integrations.transformers import NAME, KvrtCache
from tests.model.checkpoints import BASE, FAMILIES, VOCAB, make_model, randomised

UNKNOWN: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "gemma3n_text": {
        "num_hidden_layers": 6, "head_dim": 16, "num_kv_shared_layers": 2, "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "laurel_rank": 8,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6,
        "intermediate_size": [96] * 6,
    },
}  # fmt: skip
"""Model types with sinks that are learned, absolute positions, experts, layers that share keys."""

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
}
QUICK = ("llama-3", "mistral", "qwen-2-types", "gemma-2", "gpt_oss")
"""All heads see all; all see a window; some of each; capped scores; learned sinks."""

MODELS: dict[str, PreTrainedModel] = {}


def model_of(kind: str) -> PreTrainedModel:
    if kind not in MODELS and kind in FAMILIES:
        MODELS[kind] = make_model(kind)
    elif kind not in MODELS:
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(BASE | UNKNOWN[kind]))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        MODELS[kind] = randomised(model.eval())
    return MODELS[kind]


@contextmanager
def over_pages(model: PreTrainedModel, **options: Any) -> Iterator[KvrtCache]:
    """The model with kvrt's attention, and a cache for it."""
    model.set_attn_implementation(NAME)
    try:
        with KvrtCache(model.config, **({"memory_limit": "64MiB"} | options)) as cache:
            yield cache
    finally:
        model.set_attn_implementation("eager")


def prompts(rows: int = 3, tokens: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor) -> Tensor:
    """A mask: row 0 begins with 13 tokens of padding, row 1 with none, row 2 with 5."""
    mask = torch.ones_like(ids)
    mask[0, :13] = mask[2, :5] = 0
    return mask


@torch.inference_mode()
def generate(model: PreTrainedModel, ids: Tensor, **how: Any) -> Tensor:
    torch.manual_seed(5)
    fixed = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, **(fixed | {"attention_mask": torch.ones_like(ids)} | how))


def same_tokens(kind: str, **how: Any) -> None:
    model, ids = model_of(kind), prompts()
    expected = generate(model, ids, attention_mask=padded(ids), **how)
    with over_pages(model) as cache:
        found = generate(model, ids, attention_mask=padded(ids), past_key_values=cache, **how)
    assert found.tolist() == expected.tolist()


# --- the same tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", QUICK)
def test_generate_gives_the_tokens_that_it_gives_with_its_own_cache(kind: str, way: str) -> None:
    same_tokens(kind, **WAYS[way])


@pytest.mark.extra
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", sorted({*FAMILIES, *UNKNOWN} - {*QUICK}))
@pytest.mark.filterwarnings("ignore")
def test_so_it_does_for_every_family(kind: str, way: str) -> None:
    same_tokens(kind, **WAYS[way])


def test_guesses_that_are_taken_back_leave_no_trace() -> None:
    model, ids = model_of("llama-3"), prompts(rows=1).repeat(1, 3)
    expected = generate(model, ids, do_sample=False)
    with over_pages(model) as cache:
        how = {"do_sample": False, "prompt_lookup_num_tokens": 6}
        found = generate(model, ids, past_key_values=cache, **how)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["llama-3", "qwen-2-types"])
def test_a_conversation_goes_on_where_it_was(kind: str) -> None:
    model = model_of(kind)
    with over_pages(model) as cache:
        said = generate(model, prompts(), past_key_values=cache, do_sample=False)
        longer = torch.cat([said, prompts(seed=1)], dim=1)
        found = generate(model, longer, past_key_values=cache, do_sample=False)
    assert found.tolist() == generate(model, longer, do_sample=False).tolist()


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama-3", "qwen-2-types"])
def test_steps_of_any_size_with_rows_that_go_and_fork_are_those_of_the_dynamic_cache(
    kind: str,
) -> None:
    """Random steps, selections, repetitions and cuts, in turns on both caches."""
    draw, model = random.Random(3), model_of(kind)
    with over_pages(model) as cache:
        for _ in range(4):
            cache.reset()
            ids = prompts(rows=3, tokens=10)
            mask, own = padded(ids)[:, :0], DynamicCache(config=model.config)
            new = torch.tensor([[0] * 4 + [1] * 6, [1] * 10, [0] * 2 + [1] * 8])
            for _ in range(12):
                mask = torch.cat([mask, new], dim=1)
                at = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                asked = {"input_ids": ids, "attention_mask": mask, "position_ids": at}
                model.set_attn_implementation("eager")
                expected = model(**asked, past_key_values=own).logits
                model.set_attn_implementation(NAME)
                found = model(**asked, past_key_values=cache).logits
                real = new.bool()
                torch.testing.assert_close(found[real], expected[real], atol=2e-4, rtol=2e-4)
                rows = range(len(mask))
                picked = torch.tensor([draw.choice(rows) for _ in range(draw.randint(1, 5))])
                what = draw.choice(["select", "repeat", "crop", "nothing"])
                if what == "repeat" and len(mask) < 4:
                    own.batch_repeat_interleave(2)
                    cache.batch_repeat_interleave(2)
                    mask = mask.repeat_interleave(2, dim=0)
                elif what == "select":
                    own.batch_select_indices(picked)
                    cache.batch_select_indices(picked)
                    mask = mask[picked]
                elif what == "crop" and cache.is_croppable:
                    own.crop(-2)
                    cache.crop(-2)
                    mask = mask[:, :-2]
                ids = prompts(rows=len(mask), tokens=draw.randint(1, 7), seed=draw.randint(0, 99))
                new = torch.ones_like(ids)
                assert cache.get_seq_length() == own.get_seq_length() == mask.shape[1]


# --- memory ----------------------------------------------------------------------------------


def test_beams_share_what_they_have_in_common() -> None:
    """After a prompt of 160 tokens and 16 more, eight beams of the dynamic cache hold 8 x 175."""
    model, ids = model_of("llama-3"), prompts(rows=1, tokens=160)
    how = {"num_beams": 8, "max_new_tokens": 16, "do_sample": False}
    own = DynamicCache(config=model.config)
    generate(model, ids, past_key_values=own, **how)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in own.layers)
    with over_pages(model, page_size=8) as cache:
        generate(model, ids, past_key_values=cache, **how)
        stats = cache.stats
    assert stats is not None
    assert stats.used_pages * stats.page_bytes < held / 4


def test_a_reset_gives_memory_back_and_takes_other_rows() -> None:
    model = model_of("mistral")
    with over_pages(model) as cache:
        generate(model, prompts(rows=4), past_key_values=cache)
        cache.reset()
        stats = cache.stats
        assert stats is not None
        assert stats.used_pages == 0
        assert stats.mapped_bytes <= 2 << 20  # the chunk of the null page
        found = generate(model, prompts(rows=2), past_key_values=cache)
    assert found.tolist() == generate(model, prompts(rows=2)).tolist()


def test_sequences_that_do_not_fit_the_limit_are_refused_with_the_remedy() -> None:
    model = model_of("llama-3")
    with (
        over_pages(model, memory_limit="2MiB") as cache,
        pytest.raises(CapacityError, match=r"2 MiB has \d+ pages for this step, which needs") as e,
    ):
        generate(model, prompts(rows=20, tokens=200), past_key_values=cache)
    assert "memory_limit" in e.value.fix


# --- what it refuses -------------------------------------------------------------------------


def test_another_attention_would_not_see_the_pages_and_is_refused() -> None:
    model = model_of("llama-3")
    with (
        KvrtCache(model.config) as cache,
        pytest.raises(ConfigError, match="'eager', which cannot read") as error,
    ):
        generate(model, prompts(), past_key_values=cache)
    assert NAME in error.value.fix


def test_the_attention_without_its_cache_is_refused() -> None:
    model = model_of("llama-3")
    with over_pages(model), pytest.raises(ConfigError, match="not as a KvrtCache gave them"):
        generate(model, prompts())


def test_what_pages_do_not_give_is_refused_by_name() -> None:
    model, ids = model_of("llama-3"), prompts()
    with over_pages(model) as cache:
        with pytest.raises(ConfigError, match="has no gradients"):
            model(ids, past_key_values=cache)
        cache.reset()
        with torch.inference_mode(), pytest.raises(ConfigError, match="has no masks but"):
            model(ids, past_key_values=cache, attention_mask=torch.ones(3, 1, 40, 40))
        with pytest.raises(ConfigError, match="has no weights to return"):
            generate(model, ids, past_key_values=cache, output_attentions=True)
        see = {"or_mask_function": lambda batch, head, query, key: key < 3}
        with pytest.raises(ConfigError, match="has no masks but"):
            create_causal_mask(model.config, torch.ones(3, 40, 64), None, cache, **see)


def test_padding_that_changes_between_steps_is_refused() -> None:
    model, ids = model_of("llama-3"), prompts()
    with over_pages(model) as cache, torch.inference_mode():
        model(ids, past_key_values=cache)
        mask = torch.cat([padded(ids), torch.ones(3, 1, dtype=torch.long)], dim=1)
        with pytest.raises(ConfigError, match="other tokens as padding"):
            model(ids[:, :1], past_key_values=cache, attention_mask=mask)


def test_padding_on_the_right_is_refused_where_layers_have_a_window() -> None:
    ids = prompts()
    for kind, refused in {"mistral": True, "llama-3": False}.items():
        model = model_of(kind)
        with over_pages(model) as cache, torch.inference_mode():
            if refused:
                with pytest.raises(ConfigError, match="padding on the left"):
                    model(ids, past_key_values=cache, attention_mask=padded(ids).flip(1))
            else:
                model(ids, past_key_values=cache, attention_mask=padded(ids).flip(1))


def test_another_number_of_rows_is_refused() -> None:
    model = model_of("llama-3")
    with over_pages(model) as cache, torch.inference_mode():
        model(prompts(rows=2), past_key_values=cache)
        with pytest.raises(ConfigError, match="has 2 rows and was given 3"):
            model(prompts(rows=3), past_key_values=cache)


def test_cuts_that_are_too_long_or_before_a_window_are_refused() -> None:
    for kind, tokens, message in [
        ("llama-3", -41, "cannot be forgotten"),
        ("llama-3", 3, "cannot be forgotten"),
        ("mistral", -3, "window"),
    ]:
        model = model_of(kind)
        with over_pages(model) as cache, torch.inference_mode():
            model(prompts(), past_key_values=cache)
            with pytest.raises(ConfigError, match=message):
                cache.crop(tokens)


def test_layers_that_pages_cannot_serve_are_named() -> None:
    config = AutoConfig.for_model("llama4_text", num_hidden_layers=2)
    with pytest.raises(ConfigError, match="layer 0 is of kind 'chunked_attention'"):
        KvrtCache(config)


def test_options_are_checked() -> None:
    config = model_of("llama-3").config
    for options in ({"memory_limit": "many"}, {"page_size": 0}, {"backend": ""}):
        with pytest.raises(ConfigError):
            KvrtCache(config, **options)
