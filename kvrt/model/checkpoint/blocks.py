"""Tensors of files, read block by block through a mapping of our own.

The pages of a block are dropped as soon as the next is asked for, so that reading a file takes a
few megabytes whatever its size.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvrt.model.checkpoint.header import TensorEntry
from kvrt.model.files.jsonfile import open_regular
from kvrt.model.gguf.types import BY_NAME, ElementType
from kvrt.model.packed import ggml
from kvrt.spi import DType

FLOATS: Mapping[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
READABLE = (*FLOATS, *ggml.TYPES)
"""Element types whose numbers `blocks` can give."""

BLOCK_BYTES = 16 << 20
PIECE = 127 * 256
"""Numbers of packed types that are unpacked at a time. They stay in the processor's first caches,
and are so few that torch wakes no other threads for them."""


def mapped(path: Path) -> mmap.mmap:
    """A file as memory."""
    with open(open_regular(path, expected=b"GGUF"), "rb") as file:
        # A private mapping is writable, as torch wants it, and writes would not reach the file.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def read_bytes(path: Path, entry: TensorEntry) -> Tensor:
    """All bytes of a tensor, copied: uint8 [bytes]."""
    mapping = mapped(path)
    raw = torch.frombuffer(
        mapping, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start
    )
    return raw.clone()


def blocks(
    mapping: mmap.mmap, entry: TensorEntry, count: int
) -> Iterator[tuple[Tensor, Iterator[Tensor]]]:
    """A tensor block by block, each of at most `count` numbers.

    Yields:
        A block's bytes, uint8 as the file has them; and its numbers, one-dimensional in one or more
        pieces: as they are if they are floats, unpacked to float32 if not. Both can be read until
        the next block is taken.
    """
    kind = BY_NAME[entry.dtype]
    for raw in raw_blocks(mapping, entry, count // kind.numbers * kind.nbytes):
        yield raw, numbers(raw, kind)


def raw_blocks(mapping: mmap.mmap, entry: TensorEntry, size: int = BLOCK_BYTES) -> Iterator[Tensor]:
    """A tensor's bytes as the file has them, uint8, by blocks of at most `size`; where its rows do
    not lie one after the other, of whole rows.

    Each can be read until the next is taken.
    """
    if entry.pitch:
        yield from _row_blocks(mapping, entry, size)
        return
    for at in range(entry.start, entry.end, size):
        length = min(size, entry.end - at)
        yield torch.frombuffer(mapping, dtype=torch.uint8, count=length, offset=at)
        page = at - at % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, page, at - page + length)


def _row_blocks(mapping: mmap.mmap, entry: TensorEntry, size: int) -> Iterator[Tensor]:
    """The same of rows between which there is something else. What lies between the rows of a block
    is mapped with them, and counts."""
    row, pitch = entry.row_bytes, entry.pitch
    at_once = max(1, size // pitch)
    for first in range(0, entry.shape[0], at_once):
        count = min(at_once, entry.shape[0] - first)
        at, length = entry.start + first * pitch, (count - 1) * pitch + row
        spread = torch.frombuffer(mapping, dtype=torch.uint8, count=length, offset=at)
        rows = spread.as_strided((count, row), (pitch, 1)).numpy()
        yield torch.from_numpy(rows.flatten())  # which wakes no other threads
        page = at - at % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, page, at - page + length)


def numbers(raw: Tensor, kind: ElementType) -> Iterator[Tensor]:
    """The numbers in bytes of a file; see `blocks`."""
    if kind.name in FLOATS:
        yield raw.view(getattr(torch, FLOATS[kind.name]))
    else:
        for piece in torch.split(raw.view(-1, kind.nbytes), PIECE // kind.numbers):
            yield ggml.unpack(ggml.TYPES[kind.name], piece)


def are_equal(left: tuple[Path, TensorEntry], right: tuple[Path, TensorEntry]) -> bool:
    """Whether two tensors of one shape, each in its file, hold the same numbers."""

    def numbers(path: Path, entry: TensorEntry) -> Iterator[Tensor]:
        for _, pieces in blocks(mapped(path), entry, BLOCK_BYTES // 4):
            yield from pieces

    pairs = zip(numbers(*left), numbers(*right), strict=True)
    return all(torch.equal(one.float(), other.float()) for one, other in pairs)
