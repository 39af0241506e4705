"""Writes GGUF files: of any keys and tensors, and of the tiny models of `checkpoints`."""

import itertools
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from kvrt.model.decoder.rope import inverse_frequencies
from kvrt.model.families.decoders import FAMILIES
from kvrt.model.gguf.architectures import ARCHITECTURES as READ_AS
from kvrt.model.gguf.types import TYPES
from kvrt.model.spec import RopeSpec
from kvrt.model.weights.names import NAMINGS

NUMBERS = {kind.name: number for number, kind in TYPES.items()}
SCALARS = {np.uint8: 0, np.int8: 1, np.uint16: 2, np.int16: 3, np.uint32: 4, np.int32: 5,
           np.float32: 6, np.uint64: 10, np.int64: 11, np.float64: 12,
           np.bool_: 7}  # fmt: skip

Tensor = tuple[str, Sequence[int], bytes]
"""The name of its type, its shape with rows first, its bytes."""


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """A key's value with its type: as Python's types say, integers as u32, floats as f32."""
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item) if item >= 0 else struct.pack("<Ii", 5, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, np.ndarray):
        return struct.pack("<IIQ", 9, SCALARS[item.dtype.type], item.size) + item.tobytes()
    if item and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
    kind = np.float32 if item and isinstance(item[0], float) else np.int32
    return value(np.array(item, kind))


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    version: int = 3,
) -> Path:
    """Write a file. A value that is `bytes` is written as it is, with its type."""
    tensors = tensors or {}
    alignment = keys.get("general.alignment", 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, item in keys.items():
        head += string(key) + (item if isinstance(item, bytes) else value(item))
    data: list[bytes] = []
    offset = 0
    for name, (kind, shape, raw) in tensors.items():
        head += string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", NUMBERS[kind], offset)
        data += [raw, bytes(-len(raw) % alignment)]
        offset += len(raw) + len(data[-1])
    with path.open("wb") as file:
        file.writelines([head, bytes(-len(head) % alignment), *data])
    return path


def gguf_name(name: str, naming: str = "llama") -> str:
    """The name in GGUF of a tensor of a Hugging Face checkpoint."""
    stem, end = name.rsplit(".", 1)
    number = re.search(r"\.(\d+)\.", stem)
    layer = number.group(1) if number else ""
    names = {
        row.file.format(layer, "").replace("..", "."): row.gguf.format(layer, "").rstrip(".")
        for row in NAMINGS[naming].values()
    }
    return f"{names[stem]}.{end}"


ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2",
                 "cohere": "command-r", "mixtral": "llama", "qwen2_moe": "qwen2moe",
                 "qwen3_moe": "qwen3moe", "hunyuan_v1_dense": "hunyuan-dense", "phi": "phi2",
                 "gpt_neox": "gptneox", "gpt_oss": "gpt-oss",
                 "gemma4_text": "gemma4", "glm4_moe": "glm4moe",
                 "ernie4_5_moe": "ernie4_5-moe",
                 "minimax_m2": "minimax-m2", "lfm2_moe": "lfm2moe", "youtu": "deepseek2",
                 "granitemoehybrid": "granitehybrid", "qwen3_next": "qwen3next",
                 "qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe",
                 "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
                 "glm4_moe_lite": "deepseek2"}  # fmt: skip
"""What model types are called in GGUF files, where that is otherwise."""

PERMUTED = ("llama", "smollm3", "granite", "granitemoe", "arcee")
"""Architectures whose queries and keys converters bring into pairs; others stay as they are."""

LESS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
LAYERED = ("nemotron", "starcoder2", "cohere", "cohere2", "stablelm", "phi", "gpt_neox", "gpt2")
"""Model types whose norms take the mean off, and which have another field for what is added."""

CONVOLVED = ("lfm2", "lfm2_moe")
"""Model types that have another field for what is added, too, and layers without heads."""

WINDOWED = (
    "mistral",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo3",
    "cohere2",
    "exaone4",
    "starcoder2",
    "gpt_oss",
    "gemma4_text",
)
EXPERT_KEYS = {
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "n_routed_experts": "expert_count",
    "moe_num_experts": "expert_count",
    "moe_k": "expert_used_count",
    "top_k_experts": "expert_used_count",
    "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "num_dense_layers": "leading_dense_block_count",
}
OTHER_KEYS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
}


def architecture_of(config: Mapping[str, Any]) -> str:
    return ARCHITECTURES.get(config["model_type"], config["model_type"])


def rope_of(config: Mapping[str, Any], layers: str = "full_attention") -> Mapping[str, Any]:
    """The rotation of a model, or of some of its layers."""
    plain = {"rope_type": "default", "rope_theta": config.get("rope_theta")}
    rope: Mapping[str, Any] = config.get("rope_parameters") or plain
    return rope.get(layers, rope)


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json in a folder, its fields called as most families call them."""
    config = json.loads((folder / "config.json").read_text())
    renamed = FAMILIES[config["architectures"][0]].renamed
    return {renamed.get(name, name): item for name, item in config.items()}


def keys_of(folder: Path) -> dict[str, Any]:
    """The keys of the model whose config.json is in a folder."""
    config = config_of(folder)
    arch = architecture_of(config)
    rope, heads = rope_of(config), config["num_attention_heads"]
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
    }
    if arch != "gpt2":
        keys["rope.freq_base"] = float(rope["rope_theta"])
    if config.get("head_dim"):
        keys |= {f"attention.{part}_length": config["head_dim"] for part in ("key", "value")}
    if rank := config.get("kv_lora_rank"):
        rotated = config["qk_rope_head_dim"]
        keys |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": rank,
            "attention.key_length": rank + rotated,
            "attention.value_length": rank,
            "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
            "attention.value_length_mla": config["v_head_dim"],
            "rope.dimension_count": rotated,
            "expert_gating_func": 1 if config["model_type"] == "deepseek_v2" else 2,
        }
        if config["q_lora_rank"]:
            keys["attention.q_lora_rank"] = config["q_lora_rank"]
        if share := rope.get("mscale_all_dim"):
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * share
    if config.get("sliding_window") and config["model_type"] in WINDOWED:
        keys["attention.sliding_window"] = config["sliding_window"]
    for field, key in OTHER_KEYS.items():
        if config.get(field) and (field != "rms_norm_eps" or config["model_type"] not in LAYERED):
            keys[key] = float(config[field])
    if config["model_type"] in CONVOLVED:
        keys["shortconv.l_cache"] = config["conv_L_cache"]
        keys["attention.layer_norm_rms_epsilon"] = float(config["norm_eps"])
        keys["attention.head_count_kv"] = [
            0 if kind == "conv" else config["num_key_value_heads"] for kind in config["layer_types"]
        ]
    if config.get("block_auto_adjust_ff_dim"):
        multiple = config["block_multiple_of"]
        keys["feed_forward_length"] = (
            -(-2 * config["intermediate_size"] // 3 // multiple) * multiple
        )
    keys |= {
        key: config[field] for field, key in EXPERT_KEYS.items() if config.get(field) is not None
    }
    if arch == "gemma3":
        keys["rope.freq_base_swa"] = rope_of(config, "sliding_attention")["rope_theta"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    if "alpha" in rope:
        keys["rope.freq_base"] *= rope["alpha"] ** (width / (width - 2))
    if "use_parallel_residual" in config:
        keys["use_parallel_residual"] = config["use_parallel_residual"]
    if "partial_rotary_factor" in rope:
        keys["rope.dimension_count"] = int(width * rope["partial_rotary_factor"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = math.log(config["max_position_embeddings"] / original) / math.log(original)
        keys["rope.scaling.original_context_length"] = original
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + stretch)
    if rope["rope_type"] in ("linear", "yarn"):
        keys["rope.scaling.type"] = rope["rope_type"]
        keys["rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
        if "attention_factor" in rope:
            keys["rope.scaling.yarn_attn_factor"] = rope["attention_factor"]
    if arch == "gemma4":
        local = [kind == "sliding_attention" for kind in config["layer_types"]]
        whole = next(iter(config["per_layer_config"].values()))
        usual = config["num_key_value_heads"]
        of_whole = whole.get("num_key_value_heads", usual)
        keys |= {
            "attention.sliding_window_pattern": np.array(local),
            "attention.head_count_kv": [usual if kind else of_whole for kind in local],
            "attention.key_length": whole["head_dim"],
            "attention.value_length": whole["head_dim"],
            "attention.key_length_swa": config["head_dim"],
            "attention.value_length_swa": config["head_dim"],
            "rope.dimension_count": whole["head_dim"],
            "rope.freq_base_swa": rope_of(config, "sliding_attention")["rope_theta"],
        }
    general = {"general.architecture": arch, "general.type": "model"}
    return general | {f"{arch}.{key}": item for key, item in keys.items()}


def _split(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """With the gates and ups of experts apart, as converters bring them, where they are one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if config["model_type"] == "granitemoe" and name.endswith("_linear.weight"):
            stem = name.split("block_sparse_moe")[0] + "mlp.experts."
            if "output" in name:
                found[f"{stem}down_proj.weight"] = tensor
            else:
                for part, half in zip(("gate", "up"), tensor.chunk(2, 1), strict=True):
                    found[f"{stem}{part}_proj.weight"] = half
        elif config["model_type"] == "gpt_oss" and ".experts." in name:
            stem, part = name.rsplit(".", 1)
            end = "bias" if part.endswith("_bias") else "weight"
            rows = tensor if end == "bias" else tensor.transpose(1, 2)
            if "gate_up" in part:
                found[f"{stem}.gate_proj.{end}"] = rows[:, ::2].contiguous()
                found[f"{stem}.up_proj.{end}"] = rows[:, 1::2].contiguous()
            else:
                found[f"{stem}.down_proj.{end}"] = rows.contiguous()
        else:
            found[name] = tensor
    return found


def _joined(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With those of a layer's experts in one tensor, whose name has no number of an expert."""
    joined: dict[str, list[torch.Tensor]] = {}
    ordered = sorted(tensors, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    for name in ordered:
        joined.setdefault(re.sub(r"experts\.\d+\.", "experts.", name), []).append(tensors[name])
    return {name: torch.stack(some) if len(some) > 1 else some[0] for name, some in joined.items()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint in a folder, named and ordered as in a GGUF file: float32."""
    config = config_of(folder)
    arch, rope = architecture_of(config), rope_of(config)
    count = config["num_attention_heads"]
    heads = {"q_proj": count, "k_proj": config.get("num_key_value_heads", count)}
    tensors: dict[str, torch.Tensor] = {}
    stored = _split(config, load_file(folder / "model.safetensors"))
    for name, tensor in _joined(stored).items():
        part = name.split(".")[-2]
        if arch in PERMUTED and part in heads:
            rows = tensor.view(heads[part], 2, -1, *tensor.shape[1:])
            tensor = rows.transpose(1, 2).reshape(tensor.shape)
        if part in ("c_attn", "c_fc", "c_proj") and arch == "gpt2" and tensor.dim() == 2:
            tensor = tensor.t().contiguous()
        if part == "query_key_value":
            own = tensor.view(count, 3, -1, *tensor.shape[1:])
            tensor = own.transpose(0, 1).reshape(tensor.shape)
        if part == "kv_b_proj":
            plain, rank = config["qk_nope_head_dim"], config["kv_lora_rank"]
            both = tensor.float().view(count, -1, rank)
            naming = "latents_gguf"
            for kind, rows in (("k", both[:, :plain].mT), ("v", both[:, plain:])):
                own = name.replace("kv_b", f"{kind}_b")
                tensors[gguf_name(own, naming)] = rows.contiguous()
            continue
        if arch in LESS_ONE and name.endswith("norm.weight"):
            tensor = tensor.float() + 1
        family = (
            READ_AS[arch].mixture if config["model_type"] == "mixtral" else READ_AS[arch].family
        )
        naming = READ_AS[arch].naming or FAMILIES[family].switches.get("naming", "llama")
        if config.get("enable_moe_block"):
            naming = READ_AS[arch].naming_of_experts
        name = re.sub("(correction|expert)_bias$", r"\g<0>.bias", name)
        if name.endswith("conv.conv.weight"):
            tensor = tensor.squeeze(1)
        if scale := re.search(r"layers\.(\d+)\.router\.(per_expert_)?scale$", name):
            of = "ffn_down_exps" if scale[2] else "ffn_gate_inp"
            tensors[f"blk.{scale[1]}.{of}.scale"] = tensor.float()
            continue
        name = re.sub(r"(sinks|layer_scalar|experts\.\w+_proj)$", r"\1.weight", name)
        tensors[gguf_name(name, naming)] = tensor.float()
    if rope["rope_type"] == "proportional":
        width = next(iter(config["per_layer_config"].values()))["head_dim"]
        turned = int(rope["partial_rotary_factor"] * width / 2)
        factors = torch.full((width // 2,), 1e30)
        factors[:turned] = 1.0
        tensors["rope_freqs.weight"] = factors
    if rope["rope_type"] == "longrope":
        for kind in ("short", "long"):
            tensors[f"rope_factors_{kind}.weight"] = torch.tensor(rope[f"{kind}_factor"])
    if rope["rope_type"] == "llama3":
        head_dim = config.get("head_dim") or config["hidden_size"] // heads["q_proj"]
        scaled = RopeSpec(
            rope["rope_theta"], "llama3", rope["factor"], rope["original_max_position_embeddings"],
            low_freq_factor=rope["low_freq_factor"], high_freq_factor=rope["high_freq_factor"],
        )  # fmt: skip
        plain = inverse_frequencies(RopeSpec(rope["rope_theta"]), head_dim)
        tensors["rope_freqs.weight"] = plain / inverse_frequencies(scaled, head_dim)
    return tensors


def tokenizer_keys() -> dict[str, Any]:
    """The keys of a tokenizer of at most `VOCAB` tokens: bytes, and a few pairs of them."""
    pairs = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
    joined = [pair.replace(" ", "") for pair in pairs]
    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), *joined]
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [2, 3, 3, *[1] * (len(tokens) - 3)],
        "merges": pairs,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": item for key, item in keys.items()}


def piece_keys() -> dict[str, Any]:
    """The keys of a SentencePiece tokenizer of at most `VOCAB` tokens."""
    words = ["▁", "a", "e", "h", "l", "o", "▁a", "he", "ll", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    keys = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(at) for at in range(len(words))],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": item for key, item in keys.items()}


def converted_tokenizer(file: Path) -> dict[str, Any]:
    """The keys of a byte-pair tokenizer that cuts text as GPT-2 does, by its tokenizer.json."""
    content = json.loads(file.read_text())
    vocab: dict[str, int] = content["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"] for token in content["added_tokens"]}
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": item for key, item in keys.items()}


def joined_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """SentencePiece's rule, as slow as it is plain: of all neighbours that make a word, join those
    whose word scores most, the first of equals, until none do."""
    symbols = list(text)
    while True:
        pairs = [
            (-scores[left + right], at)
            for at, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in scores
        ]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]


def pack(tensor: torch.Tensor, kind: str) -> Tensor:
    """A tensor in a type; one-dimensional ones are F32 in any file."""
    kind = "F32" if tensor.dim() == 1 else kind
    if kind.startswith("Q"):
        raw = quantize(tensor.numpy(), GGMLQuantizationType[kind]).tobytes()
        return kind, tuple(tensor.shape), raw
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    raw = tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
    return kind, tuple(tensor.shape), raw


def save_gguf(folder: Path, path: Path, kind: str = "F32", **keys: Any) -> Path:
    """The checkpoint in a folder as a GGUF file; `keys`: with ``__`` for dots."""
    tensors = {name: pack(tensor, kind) for name, tensor in tensors_of(folder).items()}
    more = {name.replace("__", "."): item for name, item in keys.items()}
    return write_gguf(path, keys_of(folder) | more, tensors)


def save_gguf_adapter(
    folder: Path,
    path: Path,
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    alpha: float,
) -> Path:
    """An adapter for the checkpoint in a folder, as llama.cpp converts it."""
    config = json.loads((folder / "config.json").read_text())
    arch = architecture_of(config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    naming = FAMILIES[READ_AS[arch].family].switches.get("naming", "llama")
    tensors = {}
    for module, (a, b) in matrices.items():
        part = module.rpartition(".")[2]
        if arch in PERMUTED and part in heads:
            rows = b.view(heads[part], 2, -1, *b.shape[1:])
            b = rows.transpose(1, 2).reshape(b.shape)
        name = gguf_name(f"{module}.weight", naming)
        tensors |= {f"{name}.lora_a": pack(a, "F32"), f"{name}.lora_b": pack(b, "F32")}
    keys = {"general.architecture": arch, "general.type": "adapter", "adapter.type": "lora",
            "adapter.lora.alpha": alpha}  # fmt: skip
    return write_gguf(path, keys, tensors)
