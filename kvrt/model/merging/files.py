"""Merging the files of checkpoints: each tensor is read, merged, and written before the next."""

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kvrt.errors import ConfigError, ModelError
from kvrt.model.checkpoint.blocks import FLOATS, read_bytes
from kvrt.model.checkpoint.header import TensorEntry, Tensors, read_header
from kvrt.model.checkpoint.shards import INDEX, SINGLE, find_weights
from kvrt.model.files.jsonfile import few, shown
from kvrt.model.merging.methods import Recipe
from kvrt.model.progress import Progress

SHARD_BYTES = 5 << 30
AROUND = ("*.json", "*.jinja", "*.model", "*.txt")
"""What else is copied, of the first model: its configuration and tokenizer."""


def merge(
    folders: Sequence[Path],
    base: Path | None,
    recipe: Recipe,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint of others merged. Memory is taken for one tensor of each at a time.

    Args:
        folders: of checkpoints with tensors of the same names and shapes.
        base: of the one that all were made from.
        out: a folder that does not exist yet; there is none until all of it is written.
        shard_bytes: of a file of weights, at most, where a tensor is not larger.
        progress: told about the bytes that have been written.

    Raises:
        ConfigError: the recipe is not for these models, or `out` exists.
        ModelError: a checkpoint is missing or damaged, or differs from the first in what it has.
    """
    recipe.check(len(folders), base=base is not None)
    if out.exists():
        raise ConfigError(f"{out} exists", fix="name a folder that does not")
    first = folders[0] if base is None else base
    models = [_tensors(folder) for folder in folders]
    root = None if base is None else _tensors(base)
    for folder, tensors in zip(folders, models, strict=True):
        _check_alike(first, root or models[0], folder, tensors)
    kept = root or models[0]
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        for path in (path for pattern in AROUND for path in first.glob(pattern)):
            if path.name != INDEX:
                shutil.copyfile(path, beside / path.name)
        total, done = sum(map(_nbytes, kept.values())), 0
        shards = list(_shards(kept, shard_bytes))
        names = [_shard_name(number, len(shards)) for number in range(len(shards))]
        for file, shard in zip(names, shards, strict=True):
            with open(beside / file, "wb") as written:
                written.write(_header(kept, shard))
                for name in shard:
                    merged = _merged(recipe, name, models, root, kept)
                    written.write(merged.contiguous().view(torch.uint8).numpy().data)
                    done += _nbytes(kept[name])
                    if progress is not None:
                        progress(done, total)
        if len(shards) > 1:
            where = {n: file for file, shard in zip(names, shards, strict=True) for n in shard}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (beside / INDEX).write_text(json.dumps(index, indent=2))
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside)
        raise


def _tensors(folder: Path) -> Tensors:
    files = find_weights(folder)
    found: Tensors = {}
    for path in files.paths:
        for name, entry in read_header(path).tensors.items():
            if files.assigned.get(name, path.name) == path.name:
                found[name] = path, entry
    return found


def _check_alike(first: Path, wanted: Tensors, folder: Path, tensors: Tensors) -> None:
    if lacking := sorted(wanted.keys() ^ tensors.keys()):
        raise ModelError(
            f"{folder}: has other tensors than {first}: {few(lacking)}",
            fix="merge models that were made from one",
        )
    for name, (path, entry) in tensors.items():
        other = wanted[name][1]
        if entry.shape != other.shape:
            raise ModelError(
                f"{path}: tensor {shown(name)}: shape is {list(entry.shape)}, but that of {first}"
                f" is {list(other.shape)}",
                fix="merge models that were made from one",
            )
        if {entry.dtype, other.dtype} - FLOATS.keys():
            raise ModelError(
                f"{path}: tensor {shown(name)}: dtype is {entry.dtype}; supported are"
                f" {', '.join(FLOATS)}",
                fix="merge checkpoints that are not quantised, and quantise the result",
            )


def _merged(
    recipe: Recipe, name: str, models: Sequence[Tensors], root: Tensors | None, kept: Tensors
) -> Tensor:
    base = None if root is None else _read(*root[name])
    merged = recipe.merge(name, [_read(*tensors[name]) for tensors in models], base)
    return merged.to(getattr(torch, FLOATS[kept[name][1].dtype]))


def _read(path: Path, entry: TensorEntry) -> Tensor:
    """Float32."""
    return (
        read_bytes(path, entry).view(getattr(torch, FLOATS[entry.dtype])).view(entry.shape).float()
    )


def _nbytes(place: tuple[Path, TensorEntry]) -> int:
    return place[1].end - place[1].start


def _shards(tensors: Tensors, most: int) -> Iterator[list[str]]:
    """The names of each file's tensors, in their order."""
    shard: list[str] = []
    nbytes = 0
    for name, place in tensors.items():
        if shard and nbytes + _nbytes(place) > most:
            yield shard
            shard, nbytes = [], 0
        shard.append(name)
        nbytes += _nbytes(place)
    if shard:
        yield shard


def _shard_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _header(tensors: Tensors, names: Sequence[str]) -> bytes:
    """As `kvrt.model.checkpoint.header` reads it; the data begins at a multiple of 8 bytes."""
    entries: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        entry = tensors[name][1]
        end = at + entry.end - entry.start
        entries[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
