"""Checkpoints in formats of other tools, made of a model's own numbers, each rounded to nearest."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tests.models.real import reference

BUNDLED = Path(__file__).parents[2] / "kvrt" / "model" / "bundled"

# Dettmers et al. 2023, "QLoRA", appendix E (arXiv 2305.14314).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
       -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
       0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


def fp8_by_rows(weight: Tensor) -> dict[str, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scales).to(torch.float8_e4m3fn), "weight_scale": scales}


def fp8_by_blocks(weight: Tensor, size: int = 128) -> dict[str, Tensor]:
    rows, columns = weight.shape
    whole = functional.pad(weight, (0, -columns % size, 0, -rows % size))
    blocks = whole.view(len(whole) // size, size, -1, size)
    scales = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(whole.shape)
    return {"weight": codes[:rows, :columns].contiguous(), "weight_scale_inv": scales}


def nf4(weight: Tensor, size: int = 64) -> dict[str, Tensor]:
    levels, groups = torch.tensor(NF4), weight.reshape(-1, size)
    largest = groups.abs().amax(1)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / largest[:, None], middles).to(torch.uint8).view(-1, 2)
    state = {"quant_type": "nf4", "blocksize": size, "shape": [*weight.shape]}
    return {
        "weight": (codes[:, :1] << 4 | codes[:, 1:]).contiguous(),
        "weight.quant_map": levels,
        "weight.absmax": largest,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            [*json.dumps(state).encode()], dtype=torch.uint8
        ),
    }


METHODS: Mapping[str, tuple[dict[str, Any], Callable[[Tensor], dict[str, Tensor]]]] = {
    "FP8 by row": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                }
            },
            "ignore": ["lm_head"],
        },
        fp8_by_rows,
    ),
    "FP8 by blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8_by_blocks),
    "NF4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        nf4,
    ),
}
"""What `config.json` says of it, and the tensors of a matrix."""


def requantised(model: str | Path, method: str, folder: Path) -> Path:
    """A checkpoint without a tokenizer, of the bundled model or of a GGUF file, whose layers are as
    a method of `METHODS` keeps them; everything else is bfloat16."""
    if isinstance(model, Path):
        known = reference(model)
        config, tensors = known.config.to_dict(), dict(known.state_dict())
        tensors.pop("lm_head.weight")
    else:
        config = json.loads((BUNDLED / model / "config.json").read_text())
        tensors = load_file(BUNDLED / model / "model.safetensors")
    said, quantise = METHODS[method]
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            stored |= {stem + end: each for end, each in quantise(tensor.float()).items()}
        else:
            stored[name] = tensor.bfloat16()
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config |= {"quantization_config": said, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
