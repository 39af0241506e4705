"""Codes with scales in plain torch: what every kernel's bytes are compared with."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from kvrt_kernels import codes

from kvrt.spi import KVFormat

HEAD_DIM = 48
HEADS = arrays(
    "float32",
    (3, HEAD_DIM),
    elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


def restored(x: torch.Tensor, kv: KVFormat) -> torch.Tensor:
    return codes.decode(*codes.encode(x, kv), kv, HEAD_DIM)


def test_every_finite_e4m3_number_is_kept_as_it_is() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    assert len(every) == 254
    heads = torch.zeros(6, HEAD_DIM)
    heads.view(-1)[: len(every)] = every
    heads[:, -1] = 448.0  # the largest, so that the scale is 1
    assert torch.equal(restored(heads, "fp8"), heads)


@given(HEADS)
def test_fp8_is_within_half_a_unit_of_its_last_place(numbers: object) -> None:
    """3 binary digits after the first; below 2^-6 of the scale they come in steps of 2^-9."""
    x = torch.as_tensor(numbers)
    scale = x.abs().amax(-1, keepdim=True) / 448
    error = (restored(x, "fp8") - x).abs()
    allowed = torch.maximum(x.abs() * 2**-4, scale * 2**-10) * 1.00001
    assert (error <= torch.where(scale < 2.0**-100, x.abs(), allowed)).all()


@given(HEADS)
def test_int8_is_within_half_a_step(numbers: object) -> None:
    x = torch.as_tensor(numbers)
    scale = x.abs().amax(-1, keepdim=True) / 127
    error = (restored(x, "int8") - x).abs()
    assert (error <= torch.where(scale < 2.0**-100, x.abs(), scale / 2 * 1.0001)).all()
