"""The numbers in the blocks of quantised types, as float32.

A block has scales and codes; its numbers are ``scale * code``, with an offset in most types:

    Q8_0, Q4_0, Q5_0               d * (q - middle)            32 numbers
    Q4_1, Q5_1                     d * q + m                   32
    Q4_K, Q5_K                     (d * s) * q - (dmin * m)    256, of which 32 share an s and an m
    Q6_K                           (d * s) * (q - 32)          256, of which 16 share an s

Every product is rounded to float32 in this order, so the bits are those of ggml's own functions.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def _half(raw: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block: float32 [blocks, 1]."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """[blocks, groups, bytes] to [blocks, groups, 2 * bytes]: the low halves, then the high."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _fifth_bits(raw: Tensor) -> Tensor:
    """The fifth bits of 32 codes, [blocks, 4] with the first code's lowest: 0 or 16."""
    bits = raw[:, :, None] >> torch.arange(8, dtype=torch.uint8)
    return (bits & 1).flatten(1) << 4


def _q8_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * raw[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * (_nibbles(raw[:, 2:]).float() - 8)


def _q4_1(raw: Tensor) -> Tensor:
    return _half(raw, 0) * _nibbles(raw[:, 4:]).float() + _half(raw, 2)


def _q5_0(raw: Tensor) -> Tensor:
    codes = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return _half(raw, 0) * (codes.float() - 16)


def _q5_1(raw: Tensor) -> Tensor:
    codes = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _half(raw, 0) * codes.float() + _half(raw, 2)


def _scales_and_offsets(raw: Tensor) -> tuple[Tensor, Tensor]:
    """What the eight groups of a block share: float32 [blocks, 8, 1] each.

    The block begins with d and dmin, then twelve bytes hold 6 bits for each s and m: those of the
    first four groups in whole bytes, whose upper two bits are those of the last four.
    """
    low, high, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat((low & 63, (both & 15) | (low >> 6 << 4)), dim=1)
    offsets = torch.cat((high & 63, (both >> 4) | (high >> 6 << 4)), dim=1)
    return (_half(raw, 0) * scales.float())[:, :, None], (_half(raw, 2) * offsets.float())[
        :, :, None
    ]


def _q4_k(raw: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(raw)
    codes = _nibbles(raw[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)
    return scales * codes.float() - offsets


def _q5_k(raw: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(raw)
    codes = _nibbles(raw[:, 48:].view(-1, 4, 32)).view(-1, 8, 32)
    fifth = raw[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]
    return scales * (codes | (fifth & 1) << 4).float() - offsets


def _q6_k(raw: Tensor) -> Tensor:
    low = raw[:, :128].view(-1, 2, 64)  # each half: the low bits of quarters 0 and 1, 2 and 3
    high = (
        raw[:, 128:192].view(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    )
    codes = _nibbles(low).view(-1, 2, 4, 32) | (high & 3) << 4
    scales = _half(raw, 208) * raw[:, 192:208].contiguous().view(torch.int8).float()
    return scales[:, :, None] * (codes.float() - 32).view(-1, 16, 16)


UNPACK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
"""From uint8 [blocks, bytes of a block] to float32, in any shape with the numbers in order."""
