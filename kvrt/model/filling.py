"""Copying a checkpoint's tensors into the arena, and naming what was copied.

One file is mapped at a time. Each block is read once: copied, searched for values that are not
finite, and hashed.
"""

import hashlib
import logging
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.blocks import BLOCK_BYTES, blocks, mapped
from kvrt.model.checkpoint import EMBEDDING, Checkpoint
from kvrt.model.header import TensorEntry
from kvrt.model.jsonfile import few, shown
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import Part, Weight, place
from kvrt.spi import DType

log = logging.getLogger(__name__)


def fill(checkpoint: Checkpoint, spec: ModelSpec, dtype: DType, arena: Tensor) -> dict[str, bytes]:
    """Copy a checkpoint into an arena, converted to the dtype each weight is kept in.

    Args:
        arena: uint8 [`weights.weight_bytes`], on any device.

    Returns:
        XXH3-128 of all bytes of each tensor, as the file has them: see `fingerprint`.

    Raises:
        ModelError: a value is not finite, or too large for `dtype`; the tensor is named.
    """
    targets = {
        part.name: target
        for weight, view in place(spec, dtype, arena)
        for part, target in _split(weight, view)
    }
    by_file: dict[Path, list[str]] = {}
    for name, (path, _) in sorted(checkpoint.tensors.items(), key=lambda item: item[1][1].start):
        by_file.setdefault(path, []).append(name)
    digests: dict[str, bytes] = {}
    with ThreadPoolExecutor(1, "kvrt-hash") as hasher:
        for path, names in by_file.items():
            mapping = mapped(path)
            for name in names:
                entry, target = checkpoint.tensors[name][1], targets[name].view(-1)
                digests[name], odd = _copy(mapping, path, entry, target, hasher)
                if odd and (name != EMBEDDING or spec.tied):
                    raise ModelError(
                        f"{path}: tensor {shown(entry.name)}: has values that are not finite",
                        fix="the file is damaged or the training failed: download it again, or"
                        " tell its author",
                    )
                if odd:  # only the requests that have these tokens meet them
                    log.warning("%s: %s is not finite in rows %s", path, entry.name, few(odd))
    return digests


def _split(weight: Weight, view: Tensor) -> Iterator[tuple[Part, Tensor]]:
    rows = [part.shape[0] for part in weight.parts]
    return zip(weight.parts, torch.split(view, rows), strict=True)


def _copy(
    mapping: mmap.mmap,
    path: Path,
    entry: TensorEntry,
    target: Tensor,
    hasher: Executor,
) -> tuple[bytes, list[int]]:
    """Copy a tensor block by block, each of which is hashed meanwhile.

    Returns:
        Its digest, and the rows that have a value which is not finite.
    """
    largest = torch.finfo(target.dtype).max
    digest = xxhash.xxh3_128()
    odd: set[int] = set()
    at = 0
    for raw, pieces in blocks(mapping, entry, BLOCK_BYTES // target.itemsize):
        hashed = hasher.submit(digest.update, raw.numpy().data)
        for source in pieces:
            low, high = (float(value) for value in torch.aminmax(source))
            if not max(-low, high) <= largest:  # also true of NaN
                finite = source.isfinite()
                _check_range(path, entry.name, source[finite], target.dtype)
                indices = finite.logical_not().nonzero()[:, 0] + at
                odd.update(torch.unique(indices // entry.shape[-1]).tolist())
            target[at : at + source.numel()].copy_(source)
            at += source.numel()
        hashed.result()
    if entry.paired:
        _part_pairs(target, entry)
    return digest.digest(), sorted(odd)


def _part_pairs(target: Tensor, entry: TensorEntry) -> None:
    """Put the rows of each head in their order: first those of the pairs' first halves."""
    for head in target.view(entry.paired, -1):
        pairs = head.view(-1, 2, entry.shape[1] if len(entry.shape) == 2 else 1)
        head.copy_(pairs.transpose(0, 1).reshape(-1))


def _check_range(path: Path, name: str, values: Tensor, dtype: torch.dtype) -> None:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > torch.finfo(dtype).max:
        raise ModelError(
            f"{path}: tensor {shown(name)}: has the value {largest:g}, too large for"
            f" {str(dtype).removeprefix('torch.')}",
            fix="load it with --dtype bfloat16 or float32",
        )


def fingerprint(checkpoint: Checkpoint, digests: Mapping[str, bytes]) -> str:
    """A name for the exact weights of a model: SHA-256, in hexadecimal.

    It covers name, dtype, shape and every byte of each tensor that the model uses, and nothing of
    how they are spread over files. Two models that were fine-tuned from one base may differ in a
    few bytes in the middle of one tensor.

    Args:
        digests: of each tensor's bytes, from `fill`.
    """
    digest = hashlib.sha256()
    for name in sorted(digests):
        _, entry = checkpoint.tensors[name]
        digest.update(repr((name, entry.dtype, entry.shape, entry.paired, digests[name])).encode())
    return digest.hexdigest()
