"""Architectures that kvrt does not have, through transformers' own modules over kvrt's pages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kvrt import Runtime, SamplingParams
from kvrt.errors import ConfigError, ModelError
from kvrt.model.borrowed.source import BorrowedFolder
from kvrt.model.loader import Model, load_model
from kvrt.spi import Device, DType
from tests.model.checkpoints import (
    BASE,
    PLAIN_ROPE,
    VOCAB,
    make_model,
    randomised,
    save_model,
    save_tokenizer,
)
from tests.model.stepping import stepping

UNKNOWN: dict[str, dict[str, Any]] = {
    "nanochat": {"model_type": "nanochat"},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64,
            "num_key_value_heads": 4},
    "gpt-bigcode": {"model_type": "gpt_bigcode", "n_inner": 96, "num_key_value_heads": 1},
    "deepseek-v2": {"model_type": "deepseek_v2", "kv_lora_rank": 32, "q_lora_rank": 24,
                    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
                    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
                    "moe_intermediate_size": 24, "first_k_dense_replace": 1,
                    "num_key_value_heads": 4, "rope_parameters": PLAIN_ROPE},
    "granite-swa": {"model_type": "granite_swa", "sliding_window": 9},
}  # fmt: skip
"""Of transformers, and not of kvrt, when this was written."""

KNOWN = ("llama-biases", "gemma-2", "gpt-oss", "qwen-2-types")
"""Of both: grouped heads, soft-caps, sinks, windows of some layers."""

IMPL: dict[str, Any] = {"model_impl": "transformers"}


def make(name: str) -> PreTrainedModel:
    if name in KNOWN:
        return make_model(name)
    settings = BASE | UNKNOWN[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return randomised(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


class Case:
    """A model of transformers, the folder it was written to, and what kvrt makes of that."""

    def __init__(self, name: str, folder: Path, device: Device) -> None:
        self.reference = make(name)
        self.folder = save_tokenizer(save_model(self.reference, folder))
        self.model: Model = load_model(self.folder, device, model_impl="transformers")

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.no_grad():
            return self.reference(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=[*UNKNOWN, *KNOWN])
def case(
    request: pytest.FixtureRequest, cpu: Device, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    return Case(request.param, tmp_path_factory.mktemp(request.param), cpu)


def prompt(length: int) -> list[int]:
    random = torch.Generator().manual_seed(length)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


def assert_close(got: list[Tensor], want: Tensor) -> None:
    assert (torch.stack(got) - want).abs().max() / want.abs().max() < 1e-4


def test_texts_of_a_mixed_batch_and_in_chunks_have_the_logits_of_transformers(
    case: Case, cpu: Device
) -> None:
    with stepping(case.model, cpu, texts=3, longest=90) as stepper:
        texts = [stepper.add(prompt(length)) for length in (1, 17, 60)]
        stepper.greedy(texts, 24, budget=16)
    for text in texts:
        assert_close(text.logits, case.logits(text.tokens[:-1]))


def test_a_runtime_answers_with_it_and_begins_with_cached_pages(case: Case) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0)
    asked = [prompt(50), prompt(50)[:40] + prompt(10)]
    with Runtime(case.folder, backend="cpu", max_batch_tokens=24, **IMPL) as runtime:
        results = [*runtime.generate(asked, params), *runtime.generate(asked, params)]
        assert "transformers'" in " ".join(runtime.model.notes)
    assert results[2].usage.cached_tokens > 0
    for asked_for, result in zip(asked * 2, results, strict=True):
        assert result.error is None
        want = case.logits([*asked_for, *result.token_ids][:-1])[len(asked_for) - 1 :]
        best = want.max(-1).values - want.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
        assert float(best.max()) < 1e-3  # ties may fall either way


def test_a_module_is_loaded_in_the_dtype_that_is_wanted(tmp_path: Path) -> None:
    source = BorrowedFolder(save_tokenizer(save_model(make(KNOWN[0]), tmp_path)))
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        module, _ = source.load(dtype, "cpu")
        assert {each.dtype for each in module.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("model_type", "settings", "said"),
    [
        ("bloom", {"n_head": 4}, "takes no positions"),
        ("mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8}, "Mamba2"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "between tokens"),
        ("bert", {}, "later"),
    ],
)
def test_what_is_more_than_attention_between_tokens_is_refused(
    tmp_path: Path, cpu: Device, model_type: str, settings: dict[str, Any], said: str
) -> None:
    config = AutoConfig.for_model(model_type, **(BASE | settings))
    save_model(randomised(AutoModelForCausalLM.from_config(config).eval()), tmp_path)
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path, cpu, model_impl="transformers")


@pytest.mark.promise("P25")
def test_code_of_a_repository_is_never_run(tmp_path: Path, cpu: Device) -> None:
    folder = save_model(make_model("llama-2"), tmp_path)
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    load_model(folder, cpu, model_impl="transformers")  # by transformers' own class
    config |= {"auto_map": own, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'own'.*code that its repository brings is never run"):
        load_model(folder, cpu, model_impl="transformers")
    assert not ran.exists()


@pytest.mark.parametrize("odd", [{"num_hidden_layers": "x"}, {"hidden_size": 7}, {"vocab_size": 9}])
def test_what_transformers_cannot_read_is_an_error_of_the_model(
    tmp_path: Path, cpu: Device, odd: dict[str, Any]
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(ModelError, match=tmp_path.name):
        load_model(folder, cpu, model_impl="transformers")


def test_weights_that_are_missing_are_named(tmp_path: Path, cpu: Device) -> None:
    folder = save_model(make_model("llama-2"), tmp_path)
    content = load_file(folder / "model.safetensors")
    del content["model.layers.1.self_attn.o_proj.weight"]
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight"):
        load_model(folder, cpu, model_impl="transformers")


def test_an_unknown_architecture_is_refused_with_this_way_out(tmp_path: Path, cpu: Device) -> None:
    folder = save_model(make("nanochat"), tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(folder, cpu)
    assert "--model-impl transformers" in str(caught.value.fix)


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"load_format": "dummy"}])
def test_what_does_not_go_with_it_is_refused(
    tmp_path: Path, cpu: Device, options: dict[str, Any]
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path)
    with pytest.raises(ConfigError, match="model_impl transformers"):
        load_model(folder, cpu, model_impl="transformers", **options)
