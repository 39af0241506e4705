"""Tensors that hold those of all experts, taken apart: each expert's is one of its own.

They are one after the other in such a tensor, so each is a part of its bytes. Files call it what an
expert's is called, without the expert's number; and where that is a parameter of its own,
``experts.down_proj`` for ``experts.7.down_proj.weight``, and ``experts.down_proj_bias``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.checkpoint.header import TensorEntry, Tensors
from kvrt.model.files.jsonfile import shown
from kvrt.model.weights.weights import Part


def taken_apart(
    tensors: Mapping[str, tuple[Path, TensorEntry]], parts: Iterable[Part], *, gguf: bool = False
) -> Tensors:
    """The tensors of a file, with one for each expert in place of those that hold all.

    Args:
        parts: what the model needs.
        gguf: the names are those of GGUF files.

    Raises:
        ModelError: a tensor is for another number of experts.
    """
    found = dict(tensors)
    each: dict[str, list[str]] = {}
    of_none: set[str] = set()
    for part in parts:
        if part.expert is None:
            of_none.add(own := part.gguf if gguf else part.name)
            if part.also in found and own not in found:
                found[own] = found.pop(part.also)
            _drop_one(found, own, part.shape, gguf=gguf)
            continue
        name, whole = (part.gguf, part.together[1]) if gguf else (part.name, part.together[0])
        stem = name.rpartition(".")[0]
        if stem not in each.setdefault(whole, []):
            each[whole].append(stem)
    for name, (path, entry) in tensors.items():
        whole, end = _cut(name, each)
        if whole not in each or name in of_none:
            continue
        del found[name]
        for stem, piece in zip(each[whole], _pieces(path, entry, len(each[whole])), strict=True):
            called = f"{stem}.{end}"
            found[called] = path, replace(piece, name=called)
    return found


def _cut(name: str, known: Mapping[str, list[str]]) -> tuple[str, str]:
    """What a name is of, and its end."""
    if name in known:
        return name, "weight"
    for sign in "._":
        stem, _, end = name.rpartition(sign)
        if stem in known:
            return stem, end
    return name, ""


def _pieces(path: Path, whole: TensorEntry, count: int) -> list[TensorEntry]:
    if not whole.shape or whole.shape[0] != count:
        raise ModelError(
            f"{path}: tensor {shown(whole.name)}: shape is {list(whole.shape)}, but there are to be"
            f" {count} experts",
            fix="check that config.json belongs to these weights",
        )
    size = (whole.end - whole.start) // count
    return [
        replace(
            whole,
            shape=whole.shape[1:],
            start=whole.start + size * at,
            end=whole.start + size * (at + 1),
        )
        for at in range(count)
    ]


def _drop_one(tensors: Tensors, name: str, shape: tuple[int, ...], *, gguf: bool) -> None:
    """Some files have vectors as matrices of one row, or of one number in each, vectors of one
    number as numbers, and filters of single channels as such of one channel; GGUF files have
    matrices and vectors of all heads as one for each."""
    if name in tensors:
        path, entry = tensors[name]
        filters, ones = (*shape[:1], 1, *shape[1:]), (1, 1, *shape, 1)
        alike = (1, *shape), filters, ones, () if shape == (1,) else shape
        by_head = gguf and (math.prod(entry.shape[:-1]), *entry.shape[-1:]) == shape
        by_head = by_head or (gguf and (math.prod(entry.shape),) == shape)
        if by_head or entry.shape in alike:
            tensors[name] = path, replace(entry, shape=shape)
