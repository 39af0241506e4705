"""Adapters in GGUF files, as llama.cpp converts them.

<tensor>.lora_a  [rank, in]        the rows of b lie as those of the model's own file do
<tensor>.lora_b  [out, rank]       the scale is alpha / rank
"""

import hashlib
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.gguf.architectures import ARCHITECTURES
from kvrt.model.gguf.header import read_header
from kvrt.model.lora.peft import AdapterFile, Delta, read_matrix


def read_gguf(path: Path) -> AdapterFile:
    """Read an adapter.

    Raises:
        ModelError: the file is missing or damaged, or no adapter that is supported.
    """
    header = read_header(path)
    fields = Fields(str(path), header.keys)
    for name, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (kind := fields.text(name)) != wanted:
            raise fields.error(name, f"is {shown(kind)}; an adapter's is {wanted}")
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise fields.error("general.architecture", f"is {shown(architecture)}, which is not known")
    alpha = fields.number("adapter.lora.alpha", 1e-6, 1e6)
    deltas: dict[str, Delta] = {}
    digest = hashlib.sha256(b"gguf")
    for name in sorted(header.tensors):
        module, _, end = name.rpartition(".lora_")
        if end not in ("a", "b") or not module.endswith(".weight"):
            raise ModelError(f"{path}: tensor {shown(name)} is no part of an adapter")
        if end == "b":
            continue
        other = header.tensors.get(f"{module}.lora_b")
        if other is None:
            raise ModelError(f"{path}: {shown(module)} has only lora_a")
        a, b = read_matrix(path, header.tensors[name]), read_matrix(path, other)
        if len(a) != b.shape[1]:
            raise ModelError(f"{path}: {shown(module)} is {list(a.shape)} and {list(b.shape)}")
        deltas[module.removesuffix(".weight")] = Delta(a, b * (alpha / len(a)))
        digest.update(repr((module, alpha, a.shape, b.shape)).encode())
        digest.update(a.numpy().tobytes() + b.numpy().tobytes())
    if len(deltas) * 2 != len(header.tensors) or not deltas:
        raise ModelError(f"{path}: has {len(header.tensors)} tensors, which are no pairs")
    return AdapterFile(path, deltas, digest.digest(), architecture)
