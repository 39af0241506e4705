"""Keys and values as codes with scales, in plain torch: what `kvrt.spi.KVLayout` defines."""

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.spi import KVFormat

TINY = 2.0**-100
"""Numbers below it are kept as 0, so that no quotient overflows."""
LARGEST: dict[KVFormat, float] = {"int8": 127, "fp8": 448}
"""The largest code, where a token's head has one scale."""


def encode(x: Tensor, format: KVFormat) -> tuple[Tensor, Tensor]:
    """The bytes of heads in a quantised format.

    Args:
        x: [..., dim].
        format: one of `kvrt.spi.QUANTIZATIONS`.

    Returns:
        uint8 [..., slot_stride], the codes, and uint8 [..., groups, scale_bytes]; see
        `kvrt.spi.Block`.
    """
    x = x.float()
    if format in LARGEST:
        largest = x.abs().amax(-1, keepdim=True)
        codes, scale = _divided(x, largest, largest / LARGEST[format])
        whole = format == "int8"
        kept = codes.round().to(torch.int8) if whole else codes.to(torch.float8_e4m3fn)
        return kept.view(torch.uint8), scale[..., None].view(torch.uint8)
    groups = functional.pad(x, (0, -x.shape[-1] % 32))
    groups = groups.view(*x.shape[:-1], groups.shape[-1] // 32, 32)
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    codes, scale = _divided(groups, extreme, (extreme / -8).bfloat16().float())
    unsigned = codes.round().clamp(-8, 7).add(8).to(torch.uint8)
    packed = unsigned[..., :16] | unsigned[..., 16:] << 4
    return packed.flatten(-2), scale.bfloat16().view(torch.uint8)


def decode(codes: Tensor, scales: Tensor, format: KVFormat, dim: int) -> Tensor:
    """The numbers, float32 [..., dim].

    Args:
        codes: uint8 [..., slot_stride].
        scales: uint8 [..., groups, scale_bytes], contiguous.
        format: one of `kvrt.spi.QUANTIZATIONS`.
        dim: elements of a head.
    """
    if format == "int8":
        return codes.view(torch.int8)[..., :dim] * scales.view(torch.float32)[..., 0]
    if format == "fp8":
        numbers = codes.view(torch.float8_e4m3fn)[..., :dim].float()
        return numbers * scales.view(torch.float32)[..., 0]
    packed = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 16, 16)[..., : scales.shape[-2], :]
    unsigned = torch.cat((packed & 15, packed >> 4), dim=-1)
    numbers = (unsigned.float() - 8) * scales.view(torch.bfloat16).float()
    return numbers.flatten(-2)[..., :dim]


def _divided(x: Tensor, extreme: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x, still to be rounded, and the scale to keep.

    What is tiny becomes 0, and what is not finite NaN.
    """
    finite = (x * 0).sum(-1, keepdim=True) == 0
    live = finite & (extreme.abs() >= TINY)
    codes = torch.where(live, x / torch.where(live, scale, 1.0), 0.0)
    kept = torch.where(live, scale, 0.0)
    return codes, torch.where(finite, kept, torch.nan)
