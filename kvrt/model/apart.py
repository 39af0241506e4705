"""Tensors that hold those of all experts, taken apart: each expert's is one of its own.

They are one after the other in such a tensor, so each is a part of its bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kvrt.errors import ModelError
from kvrt.model.header import TensorEntry, Tensors
from kvrt.model.jsonfile import shown
from kvrt.model.weights import Part


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
    experts: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        if part.together:
            experts.setdefault(part.together, []).append(part)
        else:
            _drop_one(found, part)
    for names, those in experts.items():
        for name in names:
            if name in tensors:
                path, whole = found.pop(name)
                for part, entry in zip(those, _pieces(path, whole, len(those)), strict=True):
                    called = part.gguf if gguf else part.name
                    found[called] = path, replace(entry, name=called)
    return found


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


def _drop_one(tensors: Tensors, part: Part) -> None:
    """Some files have vectors as matrices of one row."""
    if part.name in tensors:
        path, entry = tensors[part.name]
        if entry.shape == (1, *part.shape):
            tensors[part.name] = path, replace(entry, shape=part.shape)
