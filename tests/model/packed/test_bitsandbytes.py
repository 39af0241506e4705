"""The library that writes such checkpoints reads the same numbers out of them."""

import pytest
import torch

from kvrt.model.packed.method import Method, values_of
from kvrt.model.packed.methods import IntQuantized
from kvrt.model.packed.nf4 import STATE, FourBit

pytestmark = pytest.mark.extra
OUT, WIDTH = 96, 576


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_matrices_of_4_bits_are_what_their_library_makes_of_them(kind: str, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    packed, state = functional.quantize_4bit(
        torch.randn(OUT, WIDTH), quant_type=kind, compress_statistics=nested
    )
    tensors = {f"weight.{end}": tensor for end, tensor in state.as_dict(packed=True).items()}
    tensors["weight"] = packed
    method = FourBit(kind, nested)
    wanted = method.wanted(OUT, WIDTH)
    assert tensors.keys() == wanted.keys()
    assert STATE + kind in tensors
    for end, tensor in tensors.items():
        assert not wanted[end].shapes or tuple(tensor.shape) in wanted[end].shapes
    got = values_of(method.format("F32"), method.read(tensors))
    assert torch.equal(got, functional.dequantize_4bit(packed, state))


def test_matrices_of_8_bits_are_what_their_library_makes_of_them_but_for_the_last_bit() -> None:
    """It multiplies with 1/127 after the scale."""
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    codes, largest, _ = functional.int8_vectorwise_quant(torch.randn(OUT, WIDTH).half())
    method: Method = IntQuantized(0, symmetric=True, scales="SCB", times=127)
    held = method.read({"weight": codes, "SCB": largest})
    want = functional.int8_vectorwise_dequant(codes, largest)
    got = values_of(method.format("F32"), held)
    assert torch.allclose(got, want, rtol=2**-22, atol=0)
