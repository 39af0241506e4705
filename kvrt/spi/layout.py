"""Formats: as what numbers are kept, and where the keys and values of a token are."""

import functools
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
class Block:
    """How the keys, or the values, of one head lie in one page.

    Args:
        dim: elements of a head.
        groups: scales of one slot; 0 if the format has none.
        slot_stride: items from one slot to the next.
        scale_offset: items from the beginning of the block to its scales, a multiple of their size.
        items: of the whole block, its scales included.
    """

    dim: int
    groups: int
    slot_stride: int
    scale_offset: int
    items: int


@functools.cache
def block_of(format: KVFormat, dim: int, page_size: int) -> Block:
    """The block of a format, for heads of `dim` elements."""
    kept = QUANTIZATIONS.get(format)
    if kept is None:
        return Block(dim, 0, dim, page_size * dim, page_size * dim)
    groups = -(-dim // (kept.group or dim))
    stride = groups * kept.group * kept.bits // 8 or dim
    scales = -(-page_size * stride // kept.scale_bytes) * kept.scale_bytes
    return Block(dim, groups, stride, scales, scales + groups * page_size * kept.scale_bytes)


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

    A key has `head_dim` elements and a value `value_dim`, so their blocks may differ (`keys`,
    `values`). With a `v_offset` of 0 there are no blocks of values: a value is the first
    `value_dim` elements of its key, with the key's scales (multi-head latent attention, DeepSeek-AI
    2024, arXiv 2405.04434). Both need `Capability.VALUE_WIDTHS`.

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
    value_dim: int = 0
    """As many as of a key, if it is not given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)

    @classmethod
    def packed(
        cls,
        format: KVFormat,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        value_dim: int = 0,
        shared: bool = False,
    ) -> "KVLayout":
        """Blocks without gaps; with scales, whole cache lines.

        ``[page][layer][k|v][kv_head]``, or ``[page][layer][kv_head][k|v]`` if `value_dim` is not
        `head_dim`. `shared`: values are the beginning of the keys, ``[page][layer][kv_head]``.
        """
        one = cls(format, layers, kv_heads, head_dim, page_size, 0, 0, 0, 0, value_dim)
        of_both = (block_of(format, dim, page_size).items for dim in (head_dim, one.value_dim))
        align = 1 if one.quantization is None else _BLOCK_BYTES
        keys, values = (-(-items // align) * align for items in of_both)
        if shared:
            head, offset, layer = keys, 0, kv_heads * keys
        elif one.value_dim == head_dim:
            head, offset, layer = keys, kv_heads * keys, 2 * kv_heads * keys
        else:
            head, offset, layer = keys + values, keys, kv_heads * (keys + values)
        return replace(
            one, page_stride=layers * layer, layer_stride=layer, v_offset=offset, head_stride=head
        )

    @property
    def shared(self) -> bool:
        """Values are the beginning of the keys."""
        return self.v_offset == 0

    @property
    def keys(self) -> Block:
        return block_of(self.format, self.head_dim, self.page_size)

    @property
    def values(self) -> Block:
        own = block_of(self.format, self.value_dim, self.page_size)
        return replace(self.keys, dim=own.dim, groups=own.groups) if self.shared else own

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
    def page_bytes(self) -> int:
        """Bytes from one page to the next."""
        return self.page_stride * self.item_bytes
