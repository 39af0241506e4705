"""The header of a GGUF file, checked in full before any tensor is touched.

    GGUF | version u32 | tensors u64 | keys u64
    keys       name, type u32, value; an array is its items' type u32, a count u64, and the items
    tensors    name, dimensions u32, sizes u64 each (columns first), type u32, offset u64
    padding    to a multiple of general.alignment; the offsets of tensors count from here
    data       one tensor after another, each padded likewise

A string is its length, u64, and UTF-8. All is little-endian. What an array holds is decoded only
when it is asked for: a tokenizer's are a quarter of a million strings.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvrt.errors import ModelError
from kvrt.model.checkpoint.header import DAMAGED, TensorEntry
from kvrt.model.files.jsonfile import open_regular, shown
from kvrt.model.gguf.types import TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"

# Upper limits, about ten times what any published model has, so that a header that lies is refused
# within a second.
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_STRINGS = 1 << 21
"""Strings in all arrays together: tokens and merges."""
MAX_NAME = 1 << 10

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""numpy's names of the value types of one size, by their numbers in files."""

_LENGTH = struct.Struct("<Q").unpack_from


class Array(NamedTuple):
    """An array that is not decoded yet: its items' type, how many, and where they begin."""

    kind: int
    length: int
    start: int


class Keys(Mapping[str, Any]):
    """The keys of a file. An array becomes a list when it is read, or numbers as numpy has them.

    Args:
        path: the file.
        data: all of it.
        values: scalars and strings, and arrays as `Array`.
        prefix: what the names of these keys all begin with, left out here.
    """

    def __init__(
        self, path: Path, data: mmap.mmap, values: Mapping[str, Any], prefix: str = ""
    ) -> None:
        self.path = path
        self._data = data
        self._values = values
        self._prefix = prefix

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if not isinstance(value, Array):
            return value
        if value.kind == STRING:
            return self._strings(key, value)
        return self.numbers(key).tolist()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def under(self, prefix: str) -> "Keys":
        """The keys that begin with `prefix`, without it."""
        values = {
            k.removeprefix(prefix): v for k, v in self._values.items() if k.startswith(prefix)
        }
        return Keys(self.path, self._data, values, self._prefix + prefix)

    def numbers(self, key: str) -> NDArray[Any]:
        """An array of numbers, [count]: a view of the file."""
        kind, length, start = self._values[key]
        array = np.frombuffer(self._data, SCALARS[kind], length, start)
        return array != 0 if kind == BOOL else array

    def _strings(self, key: str, array: Array) -> list[str]:
        strings: list[str] = []
        data, at = self._data, array.start
        for _ in range(array.length):
            (length,) = _LENGTH(data, at)
            at += 8 + length
            try:
                strings.append(data[at - length : at].decode())
            except UnicodeDecodeError:
                raise ModelError(
                    f"{self.path}: key {self._prefix}{key}: item {len(strings)} is not UTF-8",
                    fix=DAMAGED,
                ) from None
        return strings


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Args:
        path: the file.
        keys: what it says of itself.
        tensors: what is in it, in the order of the data. Shapes have rows first.
    """

    path: Path
    keys: Keys
    tensors: Mapping[str, TensorEntry]


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file. Costs the header, whatever the file's size.

    Raises:
        ModelError: the file is missing or breaks a rule of the format. The message names the file,
            and the key or tensor and field where there is one.
    """
    with open(open_regular(path, expected=MAGIC), "rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{path}: is no GGUF file: it does not begin with GGUF", fix=DAMAGED)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _Reader(path, data).header()


def _decoded(raw: bytes, path: Path, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: {what} is not UTF-8 at byte {error.start}", fix=DAMAGED
        ) from None


class _Reader:
    """One pass over a header. `_at` is the next byte, `_what` what an error is about."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = len(MAGIC)
        self._what = "header"
        self._strings = 0

    def header(self) -> Header:
        self._check_version()
        tensors = self._count("tensors", MAX_TENSORS, 32)
        count = self._count("keys", MAX_KEYS, 13)
        keys = Keys(self._path, self._data, dict(self._pairs(count)))
        placed = self._tensors(tensors, self._alignment(keys))
        self._data.madvise(mmap.MADV_DONTNEED)
        return Header(self._path, keys, placed)

    def _error(self, reason: str) -> ModelError:
        return ModelError(f"{self._path}: {self._what}: {reason}", fix=DAMAGED)

    def _check_version(self) -> None:
        version = self._number("version", "<u4")
        if version in VERSIONS:
            return
        if version.to_bytes(4, "big") in (v.to_bytes(4, "little") for v in (1, *VERSIONS)):
            raise ModelError(
                f"{self._path}: version is that of a big-endian file, which kvrt does not read",
                fix="take the file for little-endian machines, which nearly all are",
            )
        raise ModelError(
            f"{self._path}: version is {version}; supported are 2 and 3",
            fix="convert the model again with a newer llama.cpp"
            if version < min(VERSIONS)
            else "download the file again, or look for a newer kvrt",
        )

    def _count(self, what: str, most: int, smallest: int) -> int:
        """A count of things in the header, of which each takes `smallest` bytes at least."""
        count: int = self._number(f"count of {what}", "<u8")
        if count > min(most, (self._size - self._at) // smallest):
            raise self._error(f"count of {what} is {count}, more than the file can have")
        return count

    def _pairs(self, count: int) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for number in range(count):
            self._what = f"key {number}"
            key = self._name()
            self._what = f"key {shown(key)}"
            if key in seen:
                raise self._error("appears twice")
            seen.add(key)
            yield key, self._value(self._number("type", "<u4"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return _decoded(self._string("value"), self._path, self._what)
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise self._error(f"type is {kind}, which is none")
        value = self._number("value", SCALARS[kind])
        return bool(value) if kind == BOOL else value

    def _array(self) -> Array:
        kind = self._number("array's type", "<u4")
        count = self._number("array's count", "<u8")
        start = self._at
        if kind == STRING:
            self._skip_strings(count)
        elif kind in SCALARS:
            nbytes = count * np.dtype(SCALARS[kind]).itemsize
            if nbytes > self._size - start:
                raise self._error(
                    f"array's count is {count}, but only {self._size - start} bytes follow"
                )
            self._at += nbytes
        elif kind == ARRAY:
            raise self._error("is an array of arrays, which no key of a model is")
        else:
            raise self._error(f"array's type is {kind}, which is none")
        return Array(kind, count, start)

    def _skip_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS or 8 * count > self._size - self._at:
            raise self._error(f"array's count is {count}, more than the file can have")
        data, at, last = self._data, self._at, self._size - 8
        for number in range(count):
            if at > last:
                raise self._error(f"item {number} begins beyond the end of the file")
            at += 8 + _LENGTH(data, at)[0]
        if at > self._size:
            raise self._error("its last item ends beyond the end of the file")
        self._at = at

    def _alignment(self, keys: Keys) -> int:
        value = keys.get(ALIGNMENT, 32)
        if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
            self._what = f"key {ALIGNMENT}"
            raise self._error(f"is {shown(value)}; expected a power of two")
        return value

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorEntry]:
        infos = [self._tensor(number) for number in range(count)]
        first = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        reached, before = 0, "the header"
        for offset, nbytes, name, dtype, shape in sorted(infos, key=lambda info: info[:2]):
            self._what = f"tensor {shown(name)}"
            if name in tensors:
                raise self._error("appears twice")
            if offset % alignment:
                raise self._error(f"offset is {offset}, which is no multiple of {alignment}")
            if offset < reached:
                raise self._error(f"offset is {offset}, where {before} still is")
            if offset - reached >= alignment:
                raise self._error(f"offset is {offset}, which leaves a gap after {before}")
            start, end = first + offset, first + offset + nbytes
            if end > self._size:
                raise self._error(
                    f"offset {offset}, type {dtype} and sizes {shown(list(shape))} end at byte"
                    f" {end}, but the file has {self._size}: it was cut short"
                )
            tensors[name] = TensorEntry(name, dtype, shape, start, end)
            reached, before = offset + nbytes, self._what
        return tensors

    def _tensor(self, number: int) -> tuple[int, int, str, str, tuple[int, ...]]:
        self._what = f"tensor {number}"
        name = self._name()
        self._what = f"tensor {shown(name)}"
        dimensions = self._number("dimensions", "<u4")
        if not 1 <= dimensions <= 4:
            raise self._error(f"dimensions is {dimensions}; expected 1 to 4")
        sizes = [self._number("sizes", "<u8") for _ in range(dimensions)]
        kind = self._number("type", "<u4")
        offset = self._number("offset", "<u8")
        if kind not in TYPES:
            raise self._error(f"type is {kind}, which is not known")
        dtype, numbers, nbytes = TYPES[kind]
        # Python's integers do not wrap, so sizes of 2^63 are compared and refused like any other.
        if 0 in sizes or sizes[0] % numbers:
            raise self._error(
                f"sizes is {sizes}; {dtype} has blocks of {numbers} numbers"
                if 0 not in sizes
                else f"sizes is {sizes}; none may be 0"
            )
        return offset, math.prod(sizes) // numbers * nbytes, name, dtype, tuple(reversed(sizes))

    def _number(self, what: str, dtype: str) -> Any:
        kind = np.dtype(dtype)
        if kind.itemsize > self._size - self._at:
            raise self._error(f"{what} is beyond the end of the file")
        (value,) = np.frombuffer(self._data, kind, 1, self._at).tolist()
        self._at += kind.itemsize
        return value

    def _name(self) -> str:
        name = self._string("name")
        if len(name) > MAX_NAME:
            raise self._error(f"its name has {len(name)} bytes; at most {MAX_NAME} are accepted")
        return _decoded(name, self._path, f"{self._what}: name")

    def _string(self, what: str) -> bytes:
        length = self._number(f"length of the {what}", "<u8")
        if length > self._size - self._at:
            raise self._error(
                f"length of the {what} is {length}, but only {self._size - self._at} bytes follow"
            )
        self._at += length
        return self._data[self._at - length : self._at]
