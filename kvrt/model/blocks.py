"""Tensors of safetensors files, read block by block through a mapping of our own.

The pages of a block are dropped as soon as the next is asked for, so that reading a file takes a
few megabytes whatever its size.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvrt.model.header import TensorEntry
from kvrt.model.jsonfile import open_regular
from kvrt.spi import DType

FLOATS: Mapping[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
BLOCK_BYTES = 16 << 20


def mapped(path: Path) -> mmap.mmap:
    """A file as memory."""
    with open(open_regular(path), "rb") as file:
        # A private mapping is writable, as torch wants it, and writes would not reach the file.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def blocks(mapping: mmap.mmap, entry: TensorEntry, count: int) -> Iterator[Tensor]:
    """A tensor's numbers, `count` at a time; each block can be read until the next is taken."""
    dtype = getattr(torch, FLOATS[entry.dtype])
    for at in range(entry.start, entry.end, count * dtype.itemsize):
        size = min(count * dtype.itemsize, entry.end - at)
        yield torch.frombuffer(mapping, dtype=dtype, count=size // dtype.itemsize, offset=at)
        page = at - at % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, page, at - page + size)


def are_equal(left: tuple[Path, TensorEntry], right: tuple[Path, TensorEntry]) -> bool:
    """Whether two tensors of one shape, each in its file, hold the same numbers."""
    count = BLOCK_BYTES // 4
    both = (blocks(mapped(path), entry, count) for path, entry in (left, right))
    return all(torch.equal(one.float(), other.float()) for one, other in zip(*both, strict=True))
