"""Blocks of GGUF files, made into the plain form of `kvrt.spi.WeightFormat` without loss.

A GGUF file keeps each row of a matrix as blocks of 32 to 256 elements, of one of ggml's types
(`ggml-common.h` of https://github.com/ggml-org/ggml). Which elements share a byte differs between
types. The plain form has the same numbers, of the same bits, in order.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.packed.pieces import by_pieces
from kvrt.spi import WeightFormat
from kvrt.spi.matrices import TwoLevel
from kvrt.spi.plain import plain_rows, values_of

Array = NDArray[Any]

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the numbers of the 4-bit floating-point format (OCP Microscaling Formats 1.0)."""

AT_ONCE = 1 << 18
"""Elements, about, that are made into the plain form at once. They stay in a processor's caches."""


class Block(NamedTuple):
    """What a block holds, for `plain_rows`: one row of each for each block.

    Args:
        codes: uint8 [blocks, elements].
        scales: [blocks, groups].
        scale_factors: float16 [blocks, 1].
        offsets: [blocks, groups].
        offset_factors: float16 [blocks, 1].
    """

    codes: Array
    scales: Array
    scale_factors: Array | None = None
    offsets: Array | None = None
    offset_factors: Array | None = None


class BlockType(NamedTuple):
    """One of ggml's types.

    Args:
        elements: of a block; a row consists of whole blocks.
        nbytes: of a block.
        format: what holds it without loss.
        read: what a uint8 array [blocks, nbytes] holds.
    """

    elements: int
    nbytes: int
    format: WeightFormat
    read: Callable[[Array], Block]


def to_plain(kind: BlockType, raw: Tensor, width: int) -> Tensor:
    """The plain form of rows, of the format of their type.

    Args:
        raw: uint8 [bytes], whole rows as the file has them.
        width: elements of a row, a multiple of those of a block.

    Returns:
        uint8 [rows, row_bytes].
    """
    blocks = raw.view(-1, width // kind.elements, kind.nbytes)
    plain = np.empty((len(blocks), kind.format.row_bytes(width)), np.uint8)

    def make(piece: slice) -> None:
        plain[piece] = _rows(kind, blocks[piece]).numpy()

    by_pieces(len(blocks), AT_ONCE // width, make)
    return torch.from_numpy(plain)


def unpack(kind: BlockType, raw: Tensor) -> Tensor:
    """The values of blocks, bit for bit those of ggml's own functions: float32 [elements].

    Args:
        raw: uint8 [bytes], whole blocks as the file has them.
    """
    parts = _read(kind, raw.view(-1, 1, kind.nbytes))
    return values_of(kind.format, *parts).view(-1)


def _rows(kind: BlockType, blocks: Tensor) -> Tensor:
    codes, scales, scale_factors, offsets, offset_factors = _read(kind, blocks)
    return plain_rows(
        kind.format,
        codes,
        scales,
        scale_factors=scale_factors,
        offsets=offsets,
        offset_factors=offset_factors,
    )


Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _read(kind: BlockType, blocks: Tensor) -> Parts:
    """What rows of blocks hold, by row. In numpy, whose operators wake no other threads."""
    rows = len(blocks)
    held = kind.read(blocks.flatten(0, 1).numpy())
    parts = [None if part is None else torch.from_numpy(part.reshape(rows, -1)) for part in held]
    return cast(Parts, tuple(parts))


# --- reading blocks. `b`: uint8 [blocks, bytes of a block] ----------------------------------------


def _half(blocks: Array, at: int) -> Array:
    """The float16 at a byte of each block, [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view(np.float16)


def _bits(packed: Array, width: int, run: int) -> Array:
    """Numbers of `width` bits, where bytes hold those of the same place in several runs.

    The first run is in the low bits of `run` bytes, the next above it, and so on; then come the
    next `run` bytes. uint8 [blocks, numbers].
    """
    runs = packed.reshape(len(packed), -1, run)
    mask = (1 << width) - 1
    numbers = np.empty((len(packed), runs.shape[1], 8 // width, run), np.uint8)
    for place in range(8 // width):
        np.bitwise_and(runs >> place * width, mask, out=numbers[:, :, place])
    return numbers.reshape(len(packed), -1)


def _bits_in_order(packed: Array, width: int) -> Array:
    """Numbers of `width` bits in order from the lowest bits on."""
    if width == 1:
        return np.unpackbits(packed, axis=1, bitorder="little")
    return _bits(packed, width, 1)


def _q4_0(b: Array) -> Block:
    return Block(_bits(b[:, 2:], 4, 16), _half(b, 0))


def _q4_1(b: Array) -> Block:
    return Block(_bits(b[:, 4:], 4, 16), _half(b, 0), offsets=_half(b, 2))


def _q5_0(b: Array) -> Block:
    return Block(_bits(b[:, 6:], 4, 16) | _bits_in_order(b[:, 2:6], 1) << 4, _half(b, 0))


def _q5_1(b: Array) -> Block:
    codes = _bits(b[:, 8:], 4, 16) | _bits_in_order(b[:, 4:8], 1) << 4
    return Block(codes, _half(b, 0), offsets=_half(b, 2))


def _q8_0(b: Array) -> Block:
    return Block(b[:, 2:] ^ 128, _half(b, 0))


def _q2_k(b: Array) -> Block:
    scales, minima = b[:, :16] & 15, b[:, :16] >> 4
    return Block(_bits(b[:, 16:80], 2, 32), scales, _half(b, 80), minima, -_half(b, 82))


def _q3_k(b: Array) -> Block:
    codes = _bits(b[:, 32:96], 2, 32) | _bits(b[:, :32], 1, 32) << 2
    scales = _bits(b[:, 96:104], 4, 8) | _bits(b[:, 104:108], 2, 4) << 4
    return Block(codes, scales, _half(b, 108))


def _scales_and_minima(packed: Array) -> tuple[Array, Array]:
    """Eight of each, of six bits, in 12 bytes."""
    first, second, third = np.split(packed, 3, axis=1)
    scales = np.concatenate((first & 63, third & 15 | (first >> 6) << 4), axis=1)
    minima = np.concatenate((second & 63, third >> 4 | (second >> 6) << 4), axis=1)
    return scales, minima


def _q4_k(b: Array) -> Block:
    scales, minima = _scales_and_minima(b[:, 4:16])
    return Block(_bits(b[:, 16:], 4, 32), scales, _half(b, 0), minima, -_half(b, 2))


def _q5_k(b: Array) -> Block:
    scales, minima = _scales_and_minima(b[:, 4:16])
    codes = _bits(b[:, 48:], 4, 32) | _bits(b[:, 16:48], 1, 32) << 4
    return Block(codes, scales, _half(b, 0), minima, -_half(b, 2))


def _q6_k(b: Array) -> Block:
    codes = _bits(b[:, :128], 4, 64) | _bits(b[:, 128:192], 2, 32) << 4
    return Block(codes, b[:, 192:208] ^ 128, _half(b, 208))


def _iq4_xs(b: Array) -> Block:
    scales = _bits_in_order(b[:, 4:8], 4) | _bits_in_order(b[:, 2:4], 2) << 4
    return Block(_bits(b[:, 8:], 4, 16), scales, _half(b, 0))


def _tq2_0(b: Array) -> Block:
    return Block(_bits(b[:, :64], 2, 32), _half(b, 64))


def _mxfp4(b: Array) -> Block:
    return Block(_bits(b[:, 1:], 4, 16), b[:, :1])


def _nvfp4(b: Array) -> Block:
    scales = b[:, :4] & 127
    scales = np.where(b[:, :4] == 127, 0, scales).astype(
        np.uint8
    )  # as ggml reads it, of which 127 is no number
    return Block(_bits(b[:, 4:], 4, 8), scales)


SIX = TwoLevel(6)
TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18, WeightFormat("q4_0", 4, 32, "float16", zero=8), _q4_0),
    "Q4_1": BlockType(32, 20, WeightFormat("q4_1", 4, 32, "float16", offset="float16"), _q4_1),
    "Q5_0": BlockType(32, 22, WeightFormat("q5_0", 5, 32, "float16", zero=16), _q5_0),
    "Q5_1": BlockType(32, 24, WeightFormat("q5_1", 5, 32, "float16", offset="float16"), _q5_1),
    "Q8_0": BlockType(32, 34, WeightFormat("q8_0", 8, 32, "float16", zero=128), _q8_0),
    "Q2_K": BlockType(256, 84, WeightFormat("q2_k", 2, 16, TwoLevel(4), offset=TwoLevel(4)), _q2_k),
    "Q3_K": BlockType(256, 110, WeightFormat("q3_k", 3, 16, TwoLevel(6, 32), zero=4), _q3_k),
    "Q4_K": BlockType(256, 144, WeightFormat("q4_k", 4, 32, SIX, offset=SIX), _q4_k),
    "Q5_K": BlockType(256, 176, WeightFormat("q5_k", 5, 32, SIX, offset=SIX), _q5_k),
    "Q6_K": BlockType(256, 210, WeightFormat("q6_k", 6, 16, TwoLevel(8, 128), zero=32), _q6_k),
    "IQ4_NL": BlockType(32, 18, WeightFormat("iq4_nl", 4, 32, "float16", table=IQ4), _q4_0),
    "IQ4_XS": BlockType(
        256, 136, WeightFormat("iq4_xs", 4, 32, TwoLevel(6, 32), table=IQ4), _iq4_xs
    ),
    "TQ2_0": BlockType(256, 66, WeightFormat("tq2_0", 2, 256, "float16", zero=1), _tq2_0),
    "MXFP4": BlockType(32, 17, WeightFormat("mxfp4", 4, 32, "e8m0", table=E2M1), _mxfp4),
    "NVFP4": BlockType(64, 36, WeightFormat("nvfp4", 4, 16, "e4m3", table=E2M1), _nvfp4),
}
"""Those that are kept without loss, by the names that ggml gives them."""
