"""A model with an adapter computes what the merged weights compute, whoever else is in the step."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.loader import load_model
from kvrt.model.lora.gguf import read_gguf
from kvrt.model.lora.peft import UNSUPPORTED, read_peft
from kvrt.spi import Device
from tests.model.adapters import Matrices, make_adapter, merged, save_adapter
from tests.model.checkpoints import VOCAB, make_model, save_model
from tests.model.ggufs import pack, save_gguf, save_gguf_adapter, write_gguf
from tests.model.stepping import stepping

FAMILIES = ("llama-biases", "qwen-3", "gemma-2", "granite", "phi-3", "olmo-2", "glm-4", "cohere",
            "ernie-4.5", "starcoder-2", "gpt-neox", "qwen-2-moe", "glm-4-moe", "deepseek-3",
            "deepseek-2-lite", "lfm-2")  # fmt: skip
"""Matrices under one name and under several, rows in pairs, norms behind branches, branches that
are scaled or parallel, layers with a gate and without, what all tokens of a mixture have."""

LENGTH = 40
RELATIVE = 1e-4


def prompt(seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (LENGTH,), generator=random).tolist()


def assert_close(got: list[Tensor], want: Tensor) -> None:
    assert (torch.stack(got) - want).abs().max() / want.abs().max() < RELATIVE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["cpu", "plain"])
def test_an_adapter_computes_what_its_merged_weights_do_beside_others_and_alone(
    tmp_path: Path, family: str, backend: str, request: pytest.FixtureRequest
) -> None:
    device: Device = request.getfixturevalue(backend)
    reference = make_model(family)
    model = load_model(save_model(reference, tmp_path), device)
    every = make_adapter(reference, seed=1, leave=("shared_expert_gate", "kv_b_proj"))
    some = make_adapter(
        reference, seed=2, leave=("up_proj", "q_proj", "o_proj", "c_fc", "expert_gate", "kv_b_proj")
    )
    held = [
        model.decoder.adapters.make(read_peft(save_adapter(tmp_path / name, matrices)))
        for name, matrices in (("every", every), ("some", some))
    ]
    models = [reference, merged(reference, every), merged(reference, some)]
    with stepping(model, device, texts=12, longest=LENGTH) as stepper:
        texts = [stepper.add(prompt(number)) for number in range(6)]
        numbers = [0, 0, *[held[0].number] * 2, *[held[1].number] * 2]
        stepper.step([*zip(texts, (LENGTH, 7, 9, LENGTH, 1, 20), strict=True)], numbers)
        left = [(text, number) for text, number in zip(texts, numbers, strict=True) if text.left]
        stepper.step([(text, text.left) for text, _ in left], [number for _, number in left])
        for text, number, whole in zip(texts, numbers, (0, 0, 1, 1, 2, 2), strict=True):
            with torch.no_grad():
                assert_close(text.logits, models[whole](torch.tensor([text.tokens])).logits[0])
            alone = stepper.add(text.tokens)
            stepper.step([(alone, LENGTH)], [number] if number else None)
            if backend == "cpu":
                assert torch.equal(torch.stack(alone.logits), torch.stack(text.logits))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", matrices())


def matrices() -> Matrices:
    return make_adapter(make_model("llama-2"), ranks={"layers.1.mlp.up_proj": 7})


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_ranks_and_scales_are_those_of_each_module(tmp_path: Path) -> None:
    folder = save_adapter(
        tmp_path,
        matrices(),
        rank_pattern={"1.mlp.up_proj": 7},
        alpha_pattern={r"layers\.0\.self_attn\.[qk]_proj": 3},
        use_rslora=True,
    )
    deltas = read_peft(folder).deltas
    for name, (a, b) in matrices().items():
        alpha = 3 if re.search(r"layers\.0\.self_attn\.[qk]_proj", name) else 8
        assert torch.equal(deltas[name].a, a)
        assert torch.allclose(deltas[name].b, b * (alpha / len(a) ** 0.5))


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_more_than_two_matrices_for_each_module_is_refused(
    folder: Path, field: str
) -> None:
    with pytest.raises(ModelError, match=rf"{field} is not supported"):
        read_peft(write(folder, **{field: ["lm_head"]}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"r": 5}, "makes its rank 5"),
        ({"r": None}, "r is null"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
    ],
)
def test_a_damaged_configuration_is_refused_by_its_field(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(told)):
        read_peft(write(folder, **changes))


def test_an_adapter_of_another_model_is_refused_by_its_module(tmp_path: Path, cpu: Device) -> None:
    model = load_model(save_model(make_model("llama-2"), tmp_path / "model"), cpu)
    wide = {name: (a, torch.cat([b, b])) for name, (a, b) in matrices().items()}
    for number, (wrong, told) in enumerate(
        (
            ({"model.layers.7.mlp.up_proj": next(iter(matrices().values()))}, "layers.7"),
            ({"lm_head": next(iter(matrices().values()))}, "lm_head"),
            (wide, "model's is"),
        )
    ):
        folder = save_adapter(tmp_path / str(number), wrong, rank_pattern={"1.mlp.up_proj": 7})
        with pytest.raises(ModelError, match=re.escape(told)):
            model.decoder.adapters.make(read_peft(folder))


def test_damaged_tensors_are_refused_by_name(folder: Path) -> None:
    write(folder, rank_pattern={"1.mlp.up_proj": 7})
    path = folder / "adapter_model.safetensors"
    whole, name = load_file(path), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    for changes, told in (
        ({name: torch.full_like(whole[name], torch.nan)}, "not finite"),
        ({name: whole[name].int()}, "I32"),
        ({name: None}, "has only lora_B"),
        ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, "no part of an adapter"),
    ):
        changed = {key: value for key, value in {**whole, **changes}.items() if value is not None}
        save_file(changed, path)
        with pytest.raises(ModelError, match=told):
            read_peft(folder)


@pytest.mark.parametrize("family", ["llama-2", "qwen-3", "granite"])
def test_a_gguf_file_of_an_adapter_is_the_adapter(tmp_path: Path, cpu: Device, family: str) -> None:
    reference = make_model(family)
    folder = save_model(reference, tmp_path / "model")
    matrices = make_adapter(reference)
    file = save_gguf_adapter(folder, tmp_path / "adapter.gguf", matrices, 8.0)
    saved = save_adapter(tmp_path / "adapter", matrices)
    for path in (folder, save_gguf(folder, tmp_path / "model.gguf")):
        adapters = load_model(path, cpu).decoder.adapters
        given, want = adapters.make(read_gguf(file)), adapters.make(read_peft(saved))
        assert given.deltas.keys() == want.deltas.keys()
        for weight, delta in want.deltas.items():
            assert torch.equal(given.deltas[weight].a, delta.a)
            for part, other in zip(given.deltas[weight].parts, delta.parts, strict=True):
                assert part[0] == other[0]
                assert torch.equal(part[1], other[1])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"general.type": "model"}, "general.type is 'model'"),
        ({"adapter.type": "control_vector"}, "adapter.type is 'control_vector'"),
        ({"general.architecture": "lama"}, "general.architecture is 'lama'"),
        ({"adapter.lora.alpha": -1.0}, "adapter.lora.alpha is -1"),
    ],
)
def test_a_gguf_file_that_is_no_adapter_is_refused(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    good = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
            "adapter.lora.alpha": 8.0}  # fmt: skip
    pair = {f"blk.0.attn_q.weight.lora_{end}": pack(torch.ones(4, 4), "F32") for end in "ab"}
    with pytest.raises(ModelError, match=re.escape(told)):
        read_gguf(write_gguf(tmp_path / "a.gguf", good | keys, pair))
    pair.popitem()
    with pytest.raises(ModelError, match="only lora_a"):
        read_gguf(write_gguf(tmp_path / "b.gguf", good, pair))
