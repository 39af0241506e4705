"""The tensors of quantised matrices: found and checked in headers, and read from files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.checkpoint.header import Tensors
from kvrt.model.files.jsonfile import shown
from kvrt.model.packed.method import Held, Method, Unreadable
from kvrt.model.packed.methods import FLOATS, Float8
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import Part, weights_of
from kvrt.spi import WeightFormat

DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def find_matrices(
    folder: Path, spec: ModelSpec, method: Method, tensors: Tensors
) -> dict[str, dict[str, str]]:
    """The matrices that are quantised, and of each the names of its tensors by their ends.

    Raises:
        ModelError: a tensor is missing, or is not of the shape and type that it must be.
    """
    return {
        part.name: _checked(folder, part, method, tensors)
        for weight in weights_of(spec)
        for part in weight.parts
        if weight.is_matrix and _is_quantised(part, method, tensors)
    }


def _is_quantised(part: Part, method: Method, tensors: Tensors) -> bool:
    codes = part.name.removesuffix("weight") + method.first
    return codes in tensors and tensors[codes][1].dtype not in FLOATS


def _checked(folder: Path, part: Part, method: Method, tensors: Tensors) -> dict[str, str]:
    out, width = part.shape
    format = method.format("F32")
    if not isinstance(method, Float8) and not (
        format.fits(width) and width * format.bits % 32 == 0
    ):
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config makes groups of {format.group} columns,"
            f" but {shown(part.name)} has {width}",
            fix="check that config.json belongs to these weights",
        )
    found = {}
    for end, wanted in method.wanted(out, width).items():
        name = part.name.removesuffix("weight") + end
        if name not in tensors:
            if wanted.optional:
                continue
            raise ModelError(
                f"{folder}: tensor {shown(name)} is missing, which quantised weights need",
                fix="check that config.json belongs to these weights and the download is complete",
            )
        path, entry = tensors[name]
        misshapen = wanted.shapes and entry.shape not in wanted.shapes
        if entry.dtype not in wanted.dtypes or misshapen:
            shapes = " or ".join(str(list(shape)) for shape in wanted.shapes)
            raise ModelError(
                f"{path}: tensor {shown(name)}: is {entry.dtype} {list(entry.shape)}, but"
                f" config.json makes it {' or '.join(wanted.dtypes)} {shapes}",
                fix="check that config.json belongs to these weights",
            )
        found[end] = name
    return found


def format_of(method: Method, names: Mapping[str, str], tensors: Tensors) -> WeightFormat:
    """What holds a matrix without loss, if its columns are in order and whole groups."""
    return method.format(tensors[names[method.scales]][1].dtype)


def read_matrix(
    method: Method,
    names: Mapping[str, str],
    tensors: Tensors,
    shape: tuple[int, ...],
    read: Callable[[str], Tensor],
) -> Held:
    """What the tensors of a matrix hold.

    Args:
        shape: of the matrix.
        read: gives the bytes of a tensor, by its name: uint8 [bytes].

    Raises:
        ModelError: columns are in groups that there are not, or in another order than is said; or a
            tensor contradicts another.
    """
    given = {}
    for end, name in names.items():
        entry = tensors[name][1]
        given[end] = read(name).view(DTYPES[entry.dtype]).view(entry.shape)
    try:
        held = method.read(given)
        if held.codes.shape != shape:
            has = list(held.codes.shape)
            raise Unreadable(method.first, f"has the shape {has}, which config.json does not make")
    except Unreadable as error:
        name = names[error.end]
        raise ModelError(
            f"{tensors[name][0]}: tensor {shown(name)}: {error.reason}",
            fix="check that config.json belongs to these weights",
        ) from None
    if held.group_of is not None:
        _check_groups(method, names, tensors, held)
    return held


def _check_groups(method: Method, names: Mapping[str, str], tensors: Tensors, held: Held) -> None:
    assert held.group_of is not None
    width, groups = held.codes.shape[1], held.scales.shape[1]
    (name,) = (name for end, name in names.items() if end.endswith("g_idx"))
    in_order = torch.arange(width) // (width // groups)
    if not 0 <= int(held.group_of.min()) <= int(held.group_of.max()) < groups:
        reason = f"names groups that are not from 0 to {groups - 1}"
    elif not method.ordered and not torch.equal(held.group_of, in_order):
        reason = "has columns in another order than config.json says"
    else:
        return
    raise ModelError(
        f"{tensors[name][0]}: tensor {shown(name)}: {reason}",
        fix="check that config.json belongs to these weights",
    )
