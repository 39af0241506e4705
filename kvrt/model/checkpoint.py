"""A checkpoint's safetensors files: found, checked against the model, and copied into an arena.

All checks of headers come first and cost milliseconds. Copying then maps one file at a time and
drops its pages block by block, so that loading needs the arena and a few megabytes.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.header import Header, TensorEntry, read_header
from kvrt.model.jsonfile import read_object, shown
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import Part, Weight, place, weights_of
from kvrt.spi import DType

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

FLOATS: Mapping[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files whose headers agree with a model.

    Args:
        tensors: each of the model's tensors, with the file it is in.
        dtype: of the matrices.
        headers: of the files, in the order of their names.
    """

    tensors: Mapping[str, tuple[Path, TensorEntry]]
    dtype: DType
    headers: tuple[Header, ...]


def open_checkpoint(folder: Path, spec: ModelSpec) -> Checkpoint:
    """Find a model's weights and check every header. Reads no tensor.

    Raises:
        ModelError: there are no safetensors, a file or a tensor is missing, damaged, or not of the
            shape and type the model needs. The message names the file, the tensor and the field.
    """
    headers = [read_header(path) for path in weight_files(folder)]
    tensors: dict[str, tuple[Path, TensorEntry]] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            if name in tensors:
                other = tensors[name][0].name
                raise ModelError(f"{header.path}: tensor {shown(name)} is also in {other}")
            tensors[name] = header.path, entry
    expected = {part.name: part for weight in weights_of(spec) for part in weight.parts}
    for part in expected.values():
        _check_tensor(folder, part, tensors)
    for name in tensors.keys() - expected.keys():
        if not _is_ignored(name, spec):
            raise ModelError(
                f"{tensors[name][0]}: tensor {shown(name)} is not part of a {spec.architecture}"
                " as config.json describes it",
                fix="check that config.json belongs to these weights",
            )
    chosen = {name: tensors[name] for name in expected}
    return Checkpoint(chosen, _matrix_dtype(expected, chosen), tuple(headers))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or those that the index names.

    Raises:
        ModelError: there are none, or the index is damaged or names a file that is not there.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.exists():
        raise _no_weights(folder)
    names = shard_names(index)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"{index}: weight_map names {missing[0]}, which is not in the folder"
            f" ({len(missing)} of {len(names)} files are missing)",
            fix="the download is not complete: run it again, without --offline",
        )
    return [folder / name for name in names]


def shard_names(index: Path) -> list[str]:
    """The names of the files that a checkpoint's index lists, sorted.

    Raises:
        ModelError: the index is damaged, or a name is not that of a file beside it.
    """
    mapping = read_object(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{index}: weight_map is {shown(mapping)}; expected tensors and files")
    for tensor, name in mapping.items():
        plain = isinstance(name, str) and name.isprintable() and name == os.path.basename(name)
        if not plain or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: weight_map has {shown(name)} for tensor {shown(tensor)}; expected the"
                " name of a .safetensors file in the same folder"
            )
    return sorted(set(mapping.values()))


def _no_weights(folder: Path) -> ModelError:
    for pattern in PICKLES:
        for path in sorted(folder.glob(pattern)):
            return ModelError(
                f"{path}: is a pickle, which kvrt never loads because unpickling can run code,"
                f" and there is no {SINGLE}",
                fix="convert it where you trust it: python -c 'from transformers import"
                f' AutoModelForCausalLM as M; M.from_pretrained("{folder}")'
                f'.save_pretrained("{folder}-safetensors")\'',
            )
    return ModelError(
        f"{folder}: has no {SINGLE} and no {INDEX}",
        fix="give the folder of a Hugging Face checkpoint, or --load-format dummy for random"
        " weights",
    )


def _check_tensor(
    folder: Path, part: Part, tensors: Mapping[str, tuple[Path, TensorEntry]]
) -> None:
    if part.name not in tensors:
        files = sorted({path.name for path, _ in tensors.values()})
        raise ModelError(
            f"{folder / files[0] if len(files) == 1 else folder}: tensor {shown(part.name)} is"
            " missing",
            fix="check that config.json belongs to these weights and the download is complete",
        )
    path, entry = tensors[part.name]
    if entry.dtype not in FLOATS:
        raise ModelError(
            f"{path}: tensor {shown(part.name)}: dtype is {entry.dtype}; supported are"
            f" {', '.join(FLOATS)}",
            fix="use the model's float32, bfloat16 or float16 checkpoint",
        )
    if entry.shape != part.shape:
        raise ModelError(
            f"{path}: tensor {shown(part.name)}: shape is {list(entry.shape)}, but"
            f" config.json makes it {list(part.shape)}",
            fix="check that config.json belongs to these weights",
        )


def _is_ignored(name: str, spec: ModelSpec) -> bool:
    """Tensors that checkpoints carry and models do not need."""
    return name.endswith(".rotary_emb.inv_freq") or (spec.tied and name == "lm_head.weight")


def _matrix_dtype(
    expected: Mapping[str, Part], tensors: Mapping[str, tuple[Path, TensorEntry]]
) -> DType:
    """The dtype of the matrices; float32 wins where a few are kept in it.

    No trainer mixes the two 16-bit types, but a damaged header can: their sizes are equal.
    """
    found: dict[str, str] = {}
    for name in expected:
        found.setdefault(tensors[name][1].dtype, name)
        if "F16" in found and "BF16" in found:
            raise ModelError(
                f"{tensors[name][0]}: tensor {shown(found['F16'])} has dtype F16 and tensor"
                f" {shown(found['BF16'])} has dtype BF16; one of them is damaged"
            )
    matrices = {tensors[name][1].dtype for name, part in expected.items() if len(part.shape) == 2}
    return FLOATS["F32" if "F32" in matrices else next(iter(matrices))]


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
    digests: dict[str, bytes] = {}
    with ThreadPoolExecutor(1, "kvrt-hash") as hasher:
        for header in checkpoint.headers:
            mapping = _map(header.path)
            for name, entry in header.tensors.items():
                if name in targets:
                    target = targets[name].view(-1)
                    digests[name] = _copy(mapping, header.path, name, entry, target, hasher)
    return digests


def _split(weight: Weight, view: Tensor) -> Iterator[tuple[Part, Tensor]]:
    rows = [part.shape[0] for part in weight.parts]
    return zip(weight.parts, torch.split(view, rows), strict=True)


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        # A private mapping is writable, as torch wants it, and writes would not reach the file.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _copy(
    mapping: mmap.mmap,
    path: Path,
    name: str,
    entry: TensorEntry,
    target: Tensor,
    hasher: Executor,
) -> bytes:
    """Copy a tensor block by block, each of which is hashed meanwhile. Returns its digest."""
    source_dtype = getattr(torch, FLOATS[entry.dtype])
    largest = torch.finfo(target.dtype).max
    digest = xxhash.xxh3_128()
    block = BLOCK_BYTES // source_dtype.itemsize
    for first in range(0, target.numel(), block):
        count = min(block, target.numel() - first)
        at = entry.start + first * source_dtype.itemsize
        source = torch.frombuffer(mapping, dtype=source_dtype, count=count, offset=at)
        hashed = hasher.submit(digest.update, source.view(torch.uint8).numpy().data)
        low, high = (float(value) for value in torch.aminmax(source))
        if not max(-low, high) <= largest:  # also true of NaN
            raise _bad_value(path, name, source, str(target.dtype).removeprefix("torch."))
        target[first : first + count].copy_(source)
        hashed.result()
        page = at - at % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, page, at - page + count * source_dtype.itemsize)
    return digest.digest()


def _bad_value(path: Path, name: str, source: Tensor, dtype: str) -> ModelError:
    where = f"{path}: tensor {shown(name)}"
    if bool(source.isfinite().all()):
        largest = float(source.abs().max())
        return ModelError(
            f"{where}: has the value {largest:g}, too large for {dtype}",
            fix="load it with --dtype bfloat16 or float32",
        )
    return ModelError(
        f"{where}: has values that are not finite",
        fix="the file is damaged or the training failed: download it again, or tell its author",
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
        digest.update(repr((name, entry.dtype, entry.shape, digests[name])).encode())
    return digest.hexdigest()
