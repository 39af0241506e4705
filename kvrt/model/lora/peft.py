"""Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

    base_model.model.<module>.lora_A.weight  [rank, in]
    base_model.model.<module>.lora_B.weight  [out, rank]

The scale is alpha / rank, or alpha / sqrt(rank) with ``use_rslora``; modules whose names end in a
pattern may have others.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.checkpoint.blocks import FLOATS, read_bytes
from kvrt.model.checkpoint.header import TensorEntry, read_header
from kvrt.model.files.jsonfile import Fields, few, read_object, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight")
MAX_RANK = 1 << 12
UNSUPPORTED = (
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "lora_bias", "use_qalora", "arrow_config",
    "corda_config",
)  # fmt: skip
"""Fields of adapters that are more than two matrices for each module."""


class Delta(NamedTuple):
    """What is added to a matrix: a [rank, in] and b [out, rank], which has the scale in it."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as it was read.

    Args:
        path: its folder, or its GGUF file.
        deltas: by the names of modules of the model.
        digest: SHA-256 over all of it.
        architecture: whose names and order of rows GGUF files have; empty: those of safetensors.
    """

    path: Path
    deltas: Mapping[str, Delta]
    digest: bytes
    architecture: str = ""


def read_peft(folder: Path) -> AdapterFile:
    """Read an adapter.

    Raises:
        ModelError: a file is missing or damaged, or the adapter is of a kind that is not supported.
            The message names the field or tensor.
    """
    config = folder / CONFIG
    fields = Fields(str(config), read_object(config), missing="use the files the adapter came with")
    if (kind := fields.text("peft_type", "LORA")) != "LORA":
        raise fields.error("peft_type", f"is {shown(kind)}; supported is LORA")
    if (bias := fields.text("bias", "none")) != "none":
        raise fields.error("bias", f"is {shown(bias)}; supported is none")
    for name in UNSUPPORTED:
        if fields.values().get(name):
            raise fields.error(name, "is not supported")
    header = read_header(folder / WEIGHTS)
    found: dict[str, dict[str, Tensor]] = {}
    digest = hashlib.sha256()
    for name, entry in sorted(header.tensors.items()):
        match = NAME.fullmatch(name)
        if match is None:
            raise ModelError(
                f"{header.path}: tensor {shown(name)} is no part of an adapter that is supported"
            )
        found.setdefault(match[1], {})[match[2]] = read_matrix(header.path, entry)
    deltas: dict[str, Delta] = {}
    for module, pair in sorted(found.items()):
        if len(pair) != 2:
            raise ModelError(f"{header.path}: {shown(module)} has only lora_{min(pair)}")
        a, b = pair["A"], pair["B"]
        rank = _of_module(fields, "r", "rank_pattern", module)
        if a.dim() != 2 or b.dim() != 2 or not len(a) == b.shape[1] == rank:
            raise ModelError(
                f"{header.path}: {shown(module)} is {list(a.shape)} and {list(b.shape)}, but"
                f" {CONFIG} makes its rank {rank}"
            )
        alpha = _of_module(fields, "lora_alpha", "alpha_pattern", module)
        scale = alpha / (rank**0.5 if fields.flag("use_rslora", False) else rank)
        deltas[module] = Delta(a, b * scale)
        digest.update(repr((module, scale, a.shape, b.shape)).encode())
        digest.update(a.numpy().tobytes() + b.numpy().tobytes())
    if not deltas:
        raise ModelError(f"{header.path}: has no tensors")
    return AdapterFile(folder, deltas, digest.digest())


def read_matrix(path: Path, entry: TensorEntry) -> Tensor:
    """A matrix of an adapter, float32. Raises `ModelError` where its values are none."""
    if entry.dtype not in FLOATS:
        raise ModelError(
            f"{path}: tensor {shown(entry.name)}: dtype is {entry.dtype}; supported are"
            f" {', '.join(FLOATS)}"
        )
    tensor = read_bytes(path, entry).view(getattr(torch, FLOATS[entry.dtype])).view(entry.shape)
    if not tensor.isfinite().all():
        raise ModelError(f"{path}: tensor {shown(entry.name)}: has values that are not finite")
    return tensor.float()


def _of_module(fields: Fields, name: str, pattern: str, module: str) -> int:
    """A number for all modules, or that of the first pattern that the name of one ends in."""
    if fields.has(pattern):
        section = fields.section(pattern)
        for key in section.names():
            try:
                found = re.fullmatch(rf"(.*\.)?({key})", module) is not None
            except re.error:
                raise section.error(key, "is no regular expression") from None
            if found:
                return section.integer(key, 1, MAX_RANK)
    return fields.integer(name, 1, MAX_RANK)


def check_all_used(file: AdapterFile, used: set[str]) -> None:
    """Refuse an adapter with modules that the model does not have."""
    if left := sorted(file.deltas.keys() - used):
        raise ModelError(
            f"{file.path}: the adapter is for {few(left)}, which the model does not have, or which"
            " adapters cannot change",
            fix="check that it belongs to this model; attention and feed-forward matrices can be"
            " adapted",
        )
