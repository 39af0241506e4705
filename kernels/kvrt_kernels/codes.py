"""Keys and values as codes with scales, in plain torch: what `kvrt.spi.KVLayout` defines."""

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.spi import KVFormat, KVLayout

TINY = 2.0**-100
"""Numbers below it are kept as 0, so that no quotient overflows."""
LARGEST: dict[KVFormat, float] = {"int8": 127, "fp8": 448}
"""The largest code, where a token's head has one scale."""


def encode(x: Tensor, layout: KVLayout) -> tuple[Tensor, Tensor]:
    """The bytes of heads in a quantised format.

    Args:
        x: [..., head_dim].
        layout: whose format is one of `kvrt.spi.QUANTIZATIONS`.

    Returns:
        uint8 [..., layout.slot_stride], the codes, and uint8 [..., layout.groups, scale_bytes].
    """
    x = x.float()
    if layout.format in LARGEST:
        largest = x.abs().amax(-1, keepdim=True)
        codes, scale = _divided(x, largest, largest / LARGEST[layout.format])
        whole = layout.format == "int8"
        kept = codes.round().to(torch.int8) if whole else codes.to(torch.float8_e4m3fn)
        return kept.view(torch.uint8), scale[..., None].view(torch.uint8)
    groups = functional.pad(x, (0, 32 * layout.groups - x.shape[-1]))
    groups = groups.view(*x.shape[:-1], layout.groups, 32)
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    codes, scale = _divided(groups, extreme, (extreme / -8).bfloat16().float())
    unsigned = codes.round().clamp(-8, 7).add(8).to(torch.uint8)
    packed = unsigned[..., :16] | unsigned[..., 16:] << 4
    return packed.flatten(-2), scale.bfloat16().view(torch.uint8)


def decode(codes: Tensor, scales: Tensor, layout: KVLayout) -> Tensor:
    """The numbers, float32 [..., head_dim].

    Args:
        codes: uint8 [..., layout.slot_stride].
        scales: uint8 [..., layout.groups, scale_bytes], contiguous.
        layout: whose format is one of `kvrt.spi.QUANTIZATIONS`.
    """
    if layout.format == "int8":
        return codes.view(torch.int8) * scales.view(torch.float32)[..., 0]
    if layout.format == "fp8":
        return codes.view(torch.float8_e4m3fn).float() * scales.view(torch.float32)[..., 0]
    packed = codes.reshape(*codes.shape[:-1], layout.groups, 16)
    unsigned = torch.cat((packed & 15, packed >> 4), dim=-1)
    numbers = (unsigned.float() - 8) * scales.view(torch.bfloat16).float()
    return numbers.flatten(-2)[..., : layout.head_dim]


def _divided(x: Tensor, extreme: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x, still to be rounded, and the scale to keep.

    What is tiny becomes 0, and what is not finite NaN.
    """
    finite = (x * 0).sum(-1, keepdim=True) == 0
    live = finite & (extreme.abs() >= TINY)
    codes = torch.where(live, x / torch.where(live, scale, 1.0), 0.0)
    kept = torch.where(live, scale, 0.0)
    return codes, torch.where(finite, kept, torch.nan)
