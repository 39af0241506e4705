"""The header of a safetensors file, checked in full before any tensor is touched.

    0            8                 8 + n                                        end of file
    |  n: u64    |  JSON, n bytes  |  tensor data                               |
                                   |<- data_offsets count from here ...       ->|

The format: https://huggingface.co/docs/safetensors. Tensors must fill the data exactly, without
overlap and without a gap, so a file that was cut, patched or padded is noticed here.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvrt.errors import ModelError
from kvrt.model.files.jsonfile import LIMIT, open_regular, parse_object, shown

ITEM_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
    "C64": 64,
}  # fmt: skip
"""Every element type of the format that fills whole bytes."""

MAX_DIMENSIONS = 8
DAMAGED = "the file is damaged: download or copy it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file.

    Args:
        name: as the file has it.
        dtype: its element type, as the format names it.
        shape: rows first.
        start, end: its bytes in the file.
        pitch: bytes from the beginning of a row to that of the next; 0: rows lie one after the
            other, with nothing between them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    pitch: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        rows = self.shape[0]
        if self.pitch:
            return self.end - self.start - self.pitch * (rows - 1)
        return (self.end - self.start) // rows

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * self.shape[0] if self.pitch else self.end - self.start


Tensors = dict[str, tuple[Path, TensorEntry]]
"""By name, in which file each is."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Args:
        path: the file.
        tensors: what is in it, in the order of the data.
    """

    path: Path
    tensors: Mapping[str, TensorEntry]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file. Costs the header, whatever the file's size.

    Raises:
        ModelError: the file is missing or breaks a rule of the format. The message names the file,
            and the tensor and field where there is one.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(
                f"{path}: header length: the file has {size} bytes, less than the 8 of the length",
                fix=DAMAGED,
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise ModelError(
                f"{path}: header length is {length}, but only {size - 8} bytes follow", fix=DAMAGED
            )
        if length > LIMIT:
            raise ModelError(
                f"{path}: header length is {length}; at most {LIMIT} bytes are accepted"
            )
        raw = file.read(length)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: header is not UTF-8 at byte {error.start}", fix=DAMAGED
        ) from None
    entries = parse_object(text, f"{path}: header", unique_keys=True)
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or any(type(note) is not str for note in notes.values()):
        raise ModelError(f"{path}: header: __metadata__ does not hold strings", fix=DAMAGED)
    first = 8 + length
    tensors = {name: _entry(path, name, value, first, size) for name, value in entries.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_filled(path, ordered, first, size)
    return Header(path, ordered)


def _entry(path: Path, name: str, value: Any, first: int, size: int) -> TensorEntry:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(value, dict):
        raise ModelError(f"{where}: entry is {shown(value)}; expected an object", fix=DAMAGED)
    for field in ("dtype", "shape", "data_offsets"):
        if field not in value:
            raise ModelError(f"{where}: {field} is missing", fix=DAMAGED)
    if unknown := value.keys() - {"dtype", "shape", "data_offsets"}:
        raise ModelError(
            f"{where}: {shown(min(unknown))} is not a field of the format", fix=DAMAGED
        )
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise ModelError(f"{where}: dtype is {shown(dtype)}, which is not one", fix=DAMAGED)
    shape = _sizes(where, "shape", value["shape"])
    if len(shape) > MAX_DIMENSIONS:
        raise ModelError(
            f"{where}: shape has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted"
        )
    offsets = _sizes(where, "data_offsets", value["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(
            f"{where}: data_offsets is {shown(list(offsets))}; expected a begin and an end",
            fix=DAMAGED,
        )
    begin, end = offsets
    if end > size - first:
        raise ModelError(
            f"{where}: data_offsets end at {end}, but the file has only {size - first} bytes of"
            " data: it was cut short",
            fix=DAMAGED,
        )
    nbytes = math.prod(shape) * ITEM_BITS[dtype] // 8
    if end - begin != nbytes:
        raise ModelError(
            f"{where}: dtype {dtype} and shape {shown(list(shape))} make {nbytes} bytes, but"
            f" data_offsets span {end - begin}",
            fix=DAMAGED,
        )
    return TensorEntry(name, dtype, shape, first + begin, first + end)


def _sizes(where: str, field: str, value: Any) -> tuple[int, ...]:
    # Python's integers do not wrap, so a dimension of 2^63 is compared and refused like any other.
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        raise ModelError(f"{where}: {field} is {shown(value)}; expected sizes", fix=DAMAGED)
    return tuple(value)


def _check_filled(path: Path, tensors: Mapping[str, TensorEntry], first: int, size: int) -> None:
    reached, before = first, "the header"
    for name, entry in tensors.items():
        if entry.start != reached:
            fault = "overlap" if entry.start < reached else "leave a gap after"
            raise ModelError(
                f"{path}: tensor {shown(name)}: data_offsets {fault} {before}", fix=DAMAGED
            )
        reached, before = entry.end, f"tensor {shown(name)}"
    if reached != size:
        raise ModelError(
            f"{path}: data_offsets end at {reached - first}, but {size - first} bytes of data"
            " follow the header",
            fix=DAMAGED,
        )
