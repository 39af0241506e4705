"""Random adapters of low rank, as PEFT saves them, and models that they are merged into."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

Matrices = Mapping[str, tuple[Tensor, Tensor]]


def make_adapter(
    model: PreTrainedModel,
    *,
    rank: int = 4,
    seed: int = 1,
    leave: tuple[str, ...] = (),
    ranks: Mapping[str, int] | None = None,
) -> Matrices:
    """A and B for the matrices of the model's layers, by their modules' names.

    Args:
        leave: ends of names that get none.
        ranks: of modules that have another, by ends of their names.
    """
    random = torch.Generator().manual_seed(seed)
    made = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name and not name.endswith(leave):
            own = next((r for end, r in (ranks or {}).items() if name.endswith(end)), rank)
            out, width = module.weight.shape
            a = torch.randn(own, width, generator=random) * width**-0.5
            made[name] = a, torch.randn(out, own, generator=random) * 0.3
    assert made
    return made


def save_adapter(folder: Path, matrices: Matrices, **config: Any) -> Path:
    """The folder that PEFT would write."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, (a, b) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def merged(model: PreTrainedModel, matrices: Matrices, scale: float = 2.0) -> PreTrainedModel:
    """A copy of the model, whose weights have the adapter in them."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, (a, b) in matrices.items():
            copied.get_submodule(name).weight += scale * (b @ a)
    return copied
