"""Which engines there are, with which weights, and how each is set up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMATS: Mapping[str, tuple[float, int]] = {
    "fp32": (32, 32),
    "bf16": (16, 16),
    "8 bit": (8.5, 16),
    "4 bit": (4.5, 16),
}
"""Engines are compared within one, and take turns in it. Bits of a weight, scales included, and of
a number of the KV cache, where an engine does not say otherwise."""
EXACT = "fp32"
"""The format in which all must say the same."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine with one kind of weights.

    Args:
        peer: whose driver it is, and whose Python runs it.
        format: of `FORMATS`.
        files: what it reads: ``checkpoint``, ``gguf`` or ``openvino``.
        weights: of which kind, as that layout names it.
        note: for the table: what is meant by it.
        options: of its driver.
    """

    peer: str
    format: str
    files: str
    weights: str
    note: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.peer} {self.format}, {self.note}"

    def path(self, models: Path, shape: str) -> Path:
        """Where its weights are, once they are made."""
        if self.files == "checkpoint":
            return models / shape
        if self.files == "gguf":
            return models / f"{shape}.{self.weights}.gguf"
        return models / f"{shape}.openvino" / self.weights


ENGINES: Sequence[Engine] = (
    Engine("kvrt", "fp32", "checkpoint", "F32", "KV float32", {"dtype": "float32"}),
    Engine("torch", "fp32", "checkpoint", "F32", "KV float32", {"dtype": "float32"}),
    Engine("llama.cpp", "fp32", "gguf", "F32", "KV float32", {"kv": "F32"}),
    Engine("openvino", "fp32", "openvino", "fp32", "KV float32",
           {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}),
    Engine("kvrt", "bf16", "checkpoint", "F32", "KV bfloat16", {"dtype": "bfloat16"}),
    Engine("torch", "bf16", "checkpoint", "F32", "KV bfloat16", {"dtype": "bfloat16"}),
    Engine("llama.cpp", "bf16", "gguf", "BF16", "KV float16"),
    Engine("openvino", "bf16", "openvino", "fp16", "its own KV",
           {"INFERENCE_PRECISION_HINT": "bf16"}),
    Engine("kvrt", "8 bit", "gguf", "Q8_0", "Q8_0, KV bfloat16"),
    Engine("llama.cpp", "8 bit", "gguf", "Q8_0", "Q8_0, KV float16"),
    Engine("openvino", "8 bit", "openvino", "int8", "int8 by rows, its own KV"),
    Engine("kvrt", "4 bit", "gguf", "Q4_0", "Q4_0, KV bfloat16"),
    Engine("llama.cpp", "4 bit", "gguf", "Q4_0", "Q4_0, KV float16"),
    Engine("openvino", "4 bit", "openvino", "int4", "int4 by 64, its own KV"),
)  # fmt: skip
PEERS = tuple(dict.fromkeys(engine.peer for engine in ENGINES))
