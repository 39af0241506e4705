"""Models that have the shape of published ones, and random weights.

Their output is noise, but noise that decides: a plain initialisation with tied embeddings says the
same token again and again, so two engines that agree on it have agreed on little. Here each layer
adds as much to the residual stream as is there, and embeddings are small, so that the next token
hangs on the whole context and hardly on the last token's own embedding.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Config = Mapping[str, Any]

BASE: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32",
                        "bos_token_id": 0, "eos_token_id": 0, "attention_bias": False}  # fmt: skip
SHAPES: Mapping[str, Config] = {
    "smollm2-135m": BASE | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    },
    "qwen3-0.6b": BASE | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    },
}  # fmt: skip
EMBEDDING = 0.02
SHARPNESS = 2.0
"""Of attention: the deviation of its scores. Near 0 every token would attend to all alike."""


def make_checkpoint(config: Config, folder: Path) -> Path:
    """A folder as `transformers` saves it: float32 weights, and a tokenizer of bytes and fillers.

    The same numbers each time. What is there whole is left as it is.
    """
    weights = folder / "model.safetensors"
    if weights.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator).mul_(deviation).add_(mean)
        for name, shape, mean, deviation in weights_of(config)
    }
    unfinished = folder / "model.new"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.rename(weights)
    return folder


def weights_of(config: Config) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Each tensor's name, shape, mean and deviation."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = (config[f"num_{of}_heads"] * head for of in ("attention", "key_value"))
    sharp = SHARPNESS**0.5
    yield "model.embed_tokens.weight", (config["vocab_size"], width), 0.0, EMBEDDING
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,), 1.0, 0.1
        if config["model_type"] == "qwen3":  # it normalises queries and keys, so these say how much
            yield f"{at}.self_attn.q_norm.weight", (head,), sharp, 0.1
            yield f"{at}.self_attn.k_norm.weight", (head,), sharp, 0.1
        yield f"{at}.self_attn.q_proj.weight", (queries, width), 0.0, sharp / width**0.5
        yield f"{at}.self_attn.k_proj.weight", (keys, width), 0.0, sharp / width**0.5
        yield f"{at}.self_attn.v_proj.weight", (keys, width), 0.0, 1 / width**0.5
        yield f"{at}.self_attn.o_proj.weight", (width, queries), 0.0, 1 / queries**0.5
        yield f"{at}.post_attention_layernorm.weight", (width,), 1.0, 0.1
        yield f"{at}.mlp.gate_proj.weight", (inner, width), 0.0, 1 / width**0.5
        yield f"{at}.mlp.up_proj.weight", (inner, width), 0.0, 1 / width**0.5
        yield f"{at}.mlp.down_proj.weight", (width, inner), 0.0, 1 / inner**0.5
    yield "model.norm.weight", (width,), 1.0, 0.1


def tokenizer(size: int) -> Tokenizer:
    """A token for the end, one for each byte, one pair, and fillers that no text becomes."""
    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    tokens += [f"<{number}>" for number in range(len(tokens), size)]
    made = Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, [("t", "h")])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


def needed_bytes(config: Config, bits: float, kv_bits: int, tokens: int) -> int:
    """Of the matrices, the embedding once, as it is the output's, and of the KV of tokens."""
    matrices = (shape for _, shape, _, _ in weights_of(config) if len(shape) == 2)
    numbers = sum(rows * columns for rows, columns in matrices)
    heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    kept: int = 2 * heads * config["head_dim"] * tokens
    return round(numbers * bits / 8 + kept * kv_bits / 8)
