"""Formats: as what numbers are kept, and where the keys and values of a token are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
"""Of weights and of activations."""

KVFormat = Literal["float32", "bfloat16", "float16", "int8", "fp8", "int4"]
"""How keys and values are kept in pages; `KVLayout` says what each means."""

ITEM_BYTES: Mapping[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a format keeps numbers as small whole ones, *codes*, with a scale for several of them.

    Args:
        bits: of a code.
        group: elements of a head that share a scale; 0: all of them.
        scale_bytes: of a scale.
    """

    bits: int
    group: int
    scale_bytes: int


QUANTIZATIONS: Mapping[KVFormat, Quantization] = {
    "int8": Quantization(bits=8, group=0, scale_bytes=4),
    "fp8": Quantization(bits=8, group=0, scale_bytes=4),
    "int4": Quantization(bits=4, group=32, scale_bytes=2),
}
"""The formats whose pages hold scales. Their tensors are of bytes."""

_BLOCK_BYTES = 64
"""Packed heads of pages that hold scales begin at multiples of a cache line."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Where the keys and values of a token are, and as what.

    Strides are in items of the KV tensor: numbers of the format's own dtype, or bytes, multiples of
    a scale's, if the format is one of `QUANTIZATIONS`. The keys (kv = 0) or values (kv = 1) of one
    head in one page are a *block*: slot after slot of `slot_stride` items, and then the scales.

        block(page, layer, kv, head) =
            page * page_stride + layer * layer_stride + kv * v_offset + head * head_stride

        slot 0 | slot 1 | ... | slot page_size - 1 | scales of group 0: slot 0, slot 1, ... | ...
        ^ block                                    ^ block + scale_offset

    float32, bfloat16, float16: element d of a slot is item d; there are no scales.

    int8: element d of a slot is byte d, a two's complement code from -127 to 127, times the slot's
    scale, a float32.

        scale = max |x| / 127       code = round(x / scale)

    fp8: element d of a slot is byte d, a code in E4M3 (Micikevicius et al. 2022, arXiv 2209.05433;
    torch's ``float8_e4m3fn``), whose largest number is 448, times the slot's scale, a float32.

        scale = max |x| / 448       code = round_to_e4m3(x / scale)

    int4: elements are in groups of 32, each in 16 bytes. Byte j of a group holds element j in its
    low and element 16 + j in its high four bits, as a code from -8 to 7 with 8 added; what lies
    beyond head_dim is 0 with 8 added. It is multiplied by its group's scale, a bfloat16.

        scale = round_to_bfloat16(e / -8)       code = min(7, max(-8, round(x / scale)))

    e is the largest element of the group if that is larger than minus the smallest, or else the
    smallest: its code is -8, the end of the range, whichever its sign.

    All this is float32 arithmetic, each operation rounded to nearest even. Where max |x| or |e| is
    below 2^-100, scale and codes are 0. Where an element is not finite the scale is NaN and the
    codes are 0: all that is read of it is NaN. So is what is read of bytes that are 0xFF.
    """

    format: KVFormat
    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    page_stride: int
    layer_stride: int
    v_offset: int
    head_stride: int

    @classmethod
    def packed(
        cls, format: KVFormat, *, layers: int, kv_heads: int, head_dim: int, page_size: int
    ) -> "KVLayout":
        """``[page][layer][k|v][kv_head]`` blocks without gaps; with scales, whole cache lines."""
        one = cls(format, layers, kv_heads, head_dim, page_size, 0, 0, 0, 0)
        block = one.block_items
        if one.quantization is not None:
            block = -(-block // _BLOCK_BYTES) * _BLOCK_BYTES
        half = kv_heads * block
        return replace(
            one,
            page_stride=layers * 2 * half,
            layer_stride=2 * half,
            v_offset=half,
            head_stride=block,
        )

    @property
    def quantization(self) -> Quantization | None:
        """How elements are kept as codes; None: they are kept as they are."""
        return QUANTIZATIONS.get(self.format)

    @property
    def storage(self) -> Literal["float32", "bfloat16", "float16", "uint8"]:
        """The dtype of the KV tensor."""
        if self.format == "int8" or self.format == "fp8" or self.format == "int4":
            return "uint8"
        return self.format

    @property
    def item_bytes(self) -> int:
        """Bytes of one item of the KV tensor."""
        return 1 if self.storage == "uint8" else ITEM_BYTES[self.storage]

    @property
    def groups(self) -> int:
        """Scales of one slot; 0 if the format has none."""
        kept = self.quantization
        return 0 if kept is None else -(-self.head_dim // (kept.group or self.head_dim))

    @property
    def slot_stride(self) -> int:
        """Items from one slot to the next."""
        kept = self.quantization
        if kept is None or not kept.group:
            return self.head_dim
        return self.groups * kept.group * kept.bits // 8

    @property
    def scale_offset(self) -> int:
        """Items from the beginning of a block to its scales, a multiple of their size."""
        kept = self.quantization
        align = 1 if kept is None else kept.scale_bytes
        return -(-self.page_size * self.slot_stride // align) * align

    @property
    def block_items(self) -> int:
        """Items of a block, its scales included."""
        kept = self.quantization
        scales = 0 if kept is None else self.groups * self.page_size * kept.scale_bytes
        return self.scale_offset + scales

    @property
    def page_bytes(self) -> int:
        """Bytes from one page to the next."""
        return self.page_stride * self.item_bytes
