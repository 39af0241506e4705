"""Checkpoints with a layer that predicts further tokens, in the names that published ones have."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from tests.model.checkpoints import make_model, randomised, save_model

FULL, LINEAR = "full_attention", "linear_attention"
MODELS: dict[str, dict[str, Any]] = {
    "deepseek-3": {},
    "glm-4.7-flash": {},
    "glm-4-moe": {},
    "qwen-3-next": {"layer_types": [LINEAR, LINEAR, FULL]},
    "qwen-3.5": {"layer_types": [LINEAR, LINEAR, FULL]},
    "qwen-3.5-moe": {"layer_types": [LINEAR, LINEAR, FULL]},
}
"""The families in tests/model/checkpoints.py that have one, and what differs from these."""

IN_QWEN = {
    "eh_proj.": "fc.",
    "enorm.": "pre_fc_norm_embedding.",
    "hnorm.": "pre_fc_norm_hidden.",
    "shared_head.norm.": "norm.",
}


def make_predicted(family: str, **changes: Any) -> tuple[PreTrainedModel, MtpModel]:
    """transformers' own model of a family, and its own layer behind it, with random weights."""
    model = make_model(family, **MODELS[family] | changes)
    config: Any = model.config
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None) is not None:
        config.mtp_layer_types = [FULL]
    if getattr(config, "mlp_layer_types", None) is not None:
        config.mtp_mlp_layer_types = ["sparse"]
    predictor = MtpModel(model, 1)
    randomised(predictor.layers).eval()
    return model, predictor


def save_predicted(model: PreTrainedModel, predictor: MtpModel, folder: Path) -> Path:
    """Write both as one checkpoint."""
    save_model(model, folder)
    layers = model.config.num_hidden_layers
    qwen = model.config.model_type.startswith("qwen")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in _stored(predictor):
        whose = f"model.layers.{layers}."
        if qwen:
            own = next((IN_QWEN[start] for start in IN_QWEN if name.startswith(start)), "")
            whose = "mtp." if own else "mtp.layers.0."
            name = own + name.partition("weight")[1] if own else name
        tensors[whose + name] = tensor.contiguous().clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["mtp_num_hidden_layers" if qwen else "num_nextn_predict_layers"] = 1
    path.write_text(json.dumps(config))
    return folder


def _stored(predictor: MtpModel) -> list[tuple[str, Tensor]]:
    """Its tensors, by their names in a layer; experts apart, as they are published."""
    found: list[tuple[str, Tensor]] = []
    for name, tensor in predictor.layers[0].state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        block, experts, matrix = name.partition("experts.")
        if experts and matrix in ("gate_up_proj", "down_proj"):
            kinds = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else ("down_proj",)
            for expert, both in enumerate(tensor):
                for kind, part in zip(kinds, both.chunk(len(kinds)), strict=True):
                    found.append((f"{block}experts.{expert}.{kind}.weight", part))
        else:
            found.append((name, tensor))
    return found


@torch.no_grad()
def predicted(model: PreTrainedModel, predictor: MtpModel, tokens: list[int]) -> Tensor:
    """What transformers' layer takes for the token behind each, float32 [tokens, vocab].

    Before the first token there is no state, and 0.
    """
    ids = torch.tensor([tokens])
    out = model(ids, output_hidden_states=True)
    before = torch.nn.functional.pad(out.hidden_states[-1][:, :-1], (0, 0, 1, 0))
    positions = torch.arange(len(tokens))[None]
    states = predictor.forward_layer(0, before, positions, None, input_ids=ids)
    return predictor._project_to_logits(states)[0].float()


@torch.no_grad()
def agreeing(model: PreTrainedModel, predictor: MtpModel) -> tuple[PreTrainedModel, MtpModel]:
    """Both, so that the predictor is often right: what layers add is little beside a token's own
    embedding, which goes through the predictor as it is."""
    for part in (model, predictor.layers):
        for name, parameter in part.named_parameters():
            if name.removesuffix(".weight").endswith(("o_proj", "down_proj", "out_proj")):
                parameter.mul_(0.04)
    model.get_input_embeddings().weight.mul_(5.0)
    layer: Any = predictor.layers[0]
    width = model.config.hidden_size
    layer.eh_proj.weight.mul_(0.05)
    layer.eh_proj.weight[:, :width].copy_(torch.eye(width))
    if model.config.model_type.startswith("qwen"):  # whose norms have a weight of 1 more
        layer.enorm.weight.zero_()
    else:
        layer.enorm.weight.fill_(1.0)
    layer.post_norm.weight.copy_(model.model.norm.weight)
    return model, predictor
