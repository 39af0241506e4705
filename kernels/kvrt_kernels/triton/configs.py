"""What goes by architecture: block sizes, and which pages can be read.

Block sizes are chosen beforehand: no user's first request is spent on trying them.

A tile is chosen by the width of the numbers that are multiplied and by the head size;
docs/kernels.md says how the entries were found and what each of them takes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvrt.spi import DType, KVFormat


@dataclass(frozen=True, slots=True)
class Tile:
    """How much of the work one program does at a time, and with what.

    Args:
        block_m: rows, i.e. query tokens x heads that share a KV head.
        block_n: tokens of the context.
        warps: of 32 threads, on gfx9 of 64.
        stages: blocks under way at a time: one computed, the others being read.
        peeled: prefill has a loop of its own for blocks that need no masks.
        chunk: elements of a head that are multiplied at a time; 0 for all.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    peeled: bool = False
    chunk: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return options(self.warps, self.stages)


def options(warps: int, stages: int = 1) -> dict[str, Any]:
    """What every launch tells Triton's compiler.

    Products and sums are fused where they can be. Triton's own default for it is about to change,
    and would warn of that.
    """
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


Tiles = Mapping[tuple[int, int], Tile]
"""By bits of a number and the head size, rounded up to 64, 128, 256 or 512; all above that are 512.

To unpack codes takes registers: they may have tiles of their own, by 8 bits less."""

WIDEST, WIDE, WIDE_CHUNK = 256, 512, 64
"""Heads wider than the first, as those of latents, are multiplied by chunks that divide the last
number."""

WIDE_DECODE: Tiles = {
    (16, WIDE): Tile(16, 16, 8, 1, chunk=64),
    (32, WIDE): Tile(16, 16, 4, 1, chunk=32),
}
WIDE_PREFILL: Tiles = {
    (16, WIDE): Tile(32, 32, 8, 1, chunk=64),
    (32, WIDE): Tile(16, 16, 8, 1, chunk=32),
}


Products = Mapping[tuple[int, bool], Tile]
"""For products with packed weights: by bits of an activation, and whether there are many tokens.

`block_m` are tokens, `block_n` features; the other numbers are as for attention."""

NVIDIA_PRODUCTS: Products = {
    (16, False): Tile(16, 32, 2, 4),
    (16, True): Tile(64, 64, 8, 2),
    (32, False): Tile(16, 32, 2, 2),
    (32, True): Tile(32, 64, 4, 2),
}
AMD_PRODUCTS: Products = {
    (16, False): Tile(16, 32, 2, 1),
    (16, True): Tile(64, 64, 4, 1),
    (32, False): Tile(16, 32, 4, 1),
    (32, True): Tile(32, 32, 8, 1),
}


@dataclass(frozen=True, slots=True)
class Config:
    """One architecture's tiles.

    Args:
        segment: tokens of one part of a split context; a multiple of every `block_n`.
        decode: tiles for sequences with few query tokens, whose contexts are split.
        prefill: tiles for sequences with many.
        products: tiles for products with packed weights.
    """

    segment: int
    decode: Tiles
    prefill: Tiles
    products: Products


AMPERE = Config(
    segment=256,
    products=NVIDIA_PRODUCTS,
    decode=dict(WIDE_DECODE)
    | {
        (16, 64): Tile(16, 64, 4, 3),
        (16, 128): Tile(16, 64, 4, 3),
        (16, 256): Tile(16, 32, 4, 3),
        (32, 64): Tile(16, 32, 4, 2),
        (24, 128): Tile(16, 16, 4, 1, chunk=32),
        (32, 128): Tile(16, 32, 4, 2),
        (32, 256): Tile(16, 16, 4, 2),
    },
    prefill=dict(WIDE_PREFILL)
    | {
        (16, 64): Tile(128, 64, 8, 3, peeled=True),
        (16, 128): Tile(128, 32, 8, 3),
        (8, 64): Tile(64, 64, 8, 2),
        (8, 128): Tile(64, 32, 8, 2),
        (24, 128): Tile(32, 16, 8, 1, chunk=32),
        (8, 256): Tile(32, 32, 8, 2),
        (16, 256): Tile(64, 32, 8, 3, peeled=True),
        (32, 64): Tile(64, 16, 4, 2),
        (32, 128): Tile(32, 16, 8, 2),
        (32, 256): Tile(32, 16, 8, 2),
    },
)
HOPPER = Config(
    segment=256,
    products=NVIDIA_PRODUCTS,
    decode=AMPERE.decode,
    prefill={key: tile for key, tile in AMPERE.prefill.items() if key[0] != 8}
    | {
        (16, 64): Tile(128, 128, 8, 3, peeled=True),
        (16, 128): Tile(128, 64, 8, 3, peeled=True),
        (8, 256): Tile(64, 16, 8, 2),
        (16, 256): Tile(64, 64, 8, 2, peeled=True),
    },
)
BLACKWELL = Config(
    segment=256,
    products=dict(NVIDIA_PRODUCTS) | {(16, False): Tile(16, 32, 4, 4)},
    decode=HOPPER.decode,
    prefill=dict(HOPPER.prefill) | {(32, 128): Tile(32, 16, 8, 2, chunk=64)},
)
CDNA = Config(
    segment=256,
    products=AMD_PRODUCTS,
    decode=dict(WIDE_DECODE)
    | {
        (16, 64): Tile(16, 64, 4, 1),
        (16, 128): Tile(16, 64, 4, 1),
        (16, 256): Tile(16, 32, 4, 1),
        (32, 64): Tile(16, 32, 4, 1),
        (32, 128): Tile(16, 32, 4, 1),
        (32, 256): Tile(16, 16, 4, 1),
    },
    prefill=dict(WIDE_PREFILL)
    | {
        (16, 64): Tile(128, 64, 4, 1, peeled=True),
        (16, 128): Tile(128, 32, 8, 1, peeled=True),
        (8, 256): Tile(64, 16, 8, 1),
        (16, 256): Tile(64, 32, 8, 1, peeled=True),
        (32, 64): Tile(64, 32, 4, 1),
        (32, 128): Tile(64, 32, 4, 1),
        (32, 256): Tile(32, 16, 4, 1),
    },
)
RDNA3 = Config(
    segment=256,
    products=AMD_PRODUCTS,
    decode=dict(WIDE_DECODE)
    | {
        (16, 64): Tile(16, 32, 2, 1),
        (16, 128): Tile(16, 16, 4, 1),
        (8, 256): Tile(16, 16, 16, 1, chunk=64),
        (16, 256): Tile(16, 16, 16, 1),
        (32, 64): Tile(16, 16, 4, 1, chunk=32),
        (32, 128): Tile(16, 32, 4, 1, chunk=16),
        (32, 256): Tile(16, 16, 8, 1, chunk=32),
    },
    prefill=dict(WIDE_PREFILL)
    | {
        (16, 64): Tile(128, 32, 8, 1),
        (16, 128): Tile(64, 16, 8, 1),
        (8, 256): Tile(32, 16, 16, 1, chunk=64),
        (8, WIDE): Tile(32, 16, 16, 1, chunk=64),
        (16, 256): Tile(32, 16, 16, 1),
        (32, 64): Tile(32, 16, 4, 1, chunk=32),
        (32, 128): Tile(32, 32, 8, 1, chunk=32),
        (32, 256): Tile(32, 16, 8, 1, chunk=32),
    },
)
RDNA4 = Config(
    segment=256,
    products=AMD_PRODUCTS,
    decode=dict(RDNA3.decode)
    | {
        (16, 128): Tile(16, 32, 4, 1),
        (8, 256): Tile(16, 32, 16, 1),
        (16, 256): Tile(16, 32, 8, 1),
    },
    prefill=dict(RDNA3.prefill)
    | {
        (16, 128): Tile(64, 32, 8, 1),
        (8, 256): Tile(64, 16, 8, 1),
        (16, 256): Tile(64, 16, 8, 1),
        (32, 256): Tile(32, 16, 8, 1, chunk=16),
    },
)

CONFIGS: Mapping[str, Config] = {
    "sm_80": AMPERE,
    "sm_90": HOPPER,
    "sm_100": BLACKWELL,
    "gfx90a": CDNA,
    "gfx942": CDNA,
    "gfx1100": RDNA3,
    "gfx1201": RDNA4,
}
"""The architectures for which every kernel is compiled in the tests."""

SIBLINGS: Mapping[str, str] = {
    "sm_103": "sm_100",
    "gfx950": "gfx942",
    "gfx1101": "gfx1100",
    "gfx1102": "gfx1100",
    "gfx1200": "gfx1201",
}
"""Architectures with at least the registers and shared memory of another."""

ANY = RDNA3
"""For the rest: the least registers and shared memory of all."""


def config(arch: str) -> Config:
    """The tiles for an architecture, as its driver names it.

    Args:
        arch: such as ``sm_90``, ``sm_90a``, ``gfx942`` or ``gfx942:sramecc+:xnack-``.
    """
    name = re.sub(r"(?<=^sm_)(\d+)[a-z]$", r"\1", arch.partition(":")[0])
    return CONFIGS.get(SIBLINGS.get(name, name), ANY)


HAS_FP8 = re.compile(r"sm_(89|9\d|1\d\d)|gfx(942|950|12)")
"""Architectures with instructions for 8-bit floats; those of gfx942 are for another kind of them,
and Triton converts."""


def formats_on(arch: str, dtypes: tuple[DType, ...]) -> tuple[KVFormat, ...]:
    """What pages may keep on a device that computes in `dtypes`.

    Args:
        arch: as its driver names it.
        dtypes: see `kvrt.spi.DeviceInfo.compute_dtypes`.
    """
    return (*dtypes, "int8", *(("fp8",) if HAS_FP8.match(arch) else ()), "int4")
