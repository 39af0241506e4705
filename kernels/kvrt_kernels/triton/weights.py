"""Reading packed weights: the numbers of a tile's codes, and the scales and offsets of its rows.

`rows` are the addresses of a tile's rows, `HOW` is their `Packing`, `piece` is one of a step's.
What codes stand for are small whole numbers, or E4M3's: every dtype of activations holds them.
"""

import triton
import triton.language as tl


@triton.jit
def _plane(rows, before, step, piece: tl.constexpr, WIDTH: tl.constexpr, HOW: tl.constexpr):
    """A piece of the plane of WIDTH bits behind `before` bytes: uint8 [rows, elements]."""
    SIZE: tl.constexpr = HOW.piece
    BITS: tl.constexpr = HOW.step * WIDTH
    if BITS % 8 == 0:  # then what shares its bytes is in the same step, and they are read once
        byte = step * (BITS // 8) + piece * WIDTH // 8
        shift = piece * WIDTH % 8
    else:
        byte = (step * BITS + piece * WIDTH) // 8
        shift = (step * BITS + piece * WIDTH) % 8
    bytes = tl.load(rows[:, None] + (before + byte * SIZE + tl.arange(0, SIZE))[None, :])
    if WIDTH < 8:
        bytes = ((bytes >> shift) & ((1 << WIDTH) - 1)).to(tl.uint8)
    return bytes


@triton.jit
def _codes(rows, plane, step, piece: tl.constexpr, HOW: tl.constexpr):
    """The codes of a piece: uint8 [rows, elements]."""
    BITS: tl.constexpr = HOW.bits
    if BITS == 8:
        codes = _plane(rows, 0, step, piece, 8, HOW)
    elif BITS & 4:
        codes = _plane(rows, 0, step, piece, 4, HOW)
        if BITS & 2:
            codes |= _plane(rows, plane * 4, step, piece, 2, HOW) << 4
        if BITS & 1:
            codes |= _plane(rows, plane * (BITS & 6), step, piece, 1, HOW) << (BITS & 6)
    elif BITS & 2:
        codes = _plane(rows, 0, step, piece, 2, HOW)
        if BITS & 1:
            codes |= _plane(rows, plane * 2, step, piece, 1, HOW) << 2
    else:
        codes = _plane(rows, 0, step, piece, 1, HOW)
    return codes


@triton.jit
def numbers(rows, table, plane, step, piece: tl.constexpr, HOW: tl.constexpr):
    """What a piece's codes stand for, zeros of groups not yet subtracted: float32 [rows, elements].

    `plane` are the bytes of a row's plane of one bit.
    """
    codes = _codes(rows, plane, step, piece, HOW)
    ZERO: tl.constexpr = HOW.zero
    if HOW.table:
        given = tl.load(table + codes.to(tl.int32)).to(tl.float32)
    elif HOW.e4m3:
        wide = codes.to(tl.uint16)  # as float16 with 8 less in the exponent
        half = ((wide & 127) << 7 | (wide & 128) << 8).to(tl.float16, bitcast=True)
        given = half.to(tl.float32) * 256
    else:
        given = codes.to(tl.float32)
        if ZERO != 0:
            given -= ZERO
    return given


@triton.jit
def of_groups(rows, at, factors_at, element, GROUP: tl.constexpr, KEPT: tl.constexpr):
    """The numbers of the groups that an element is in: float32 [rows]."""
    KIND: tl.constexpr = KEPT.numbers
    ZERO: tl.constexpr = KEPT.zero
    BLOCK: tl.constexpr = KEPT.block
    group = 0
    if GROUP != 0:
        group = element // GROUP
    if KIND == "two":
        whole = tl.load(rows + (at + group)).to(tl.float32) - ZERO
        factors = (rows + factors_at).to(tl.pointer_type(tl.float16), bitcast=True)
        read = tl.load(factors + element // BLOCK).to(tl.float32) * whole
    elif KIND == "zeros":
        read = tl.load(rows + (at + group)).to(tl.float32)
    else:
        begin = rows + at
        if KIND == "float32":
            read = tl.load(begin.to(tl.pointer_type(tl.float32), bitcast=True) + group)
        elif KIND == "float16":
            read = tl.load(begin.to(tl.pointer_type(tl.float16), bitcast=True) + group)
        else:
            read = tl.load(begin.to(tl.pointer_type(tl.bfloat16), bitcast=True) + group)
        read = read.to(tl.float32)
    return read
