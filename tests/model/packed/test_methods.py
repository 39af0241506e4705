"""What quantised Hugging Face checkpoints hold, number by number as each method defines it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvrt.model.packed.methods import (
    AWQ,
    GPTQ,
    Float8,
    IntQuantized,
    Method,
    PackQuantized,
    plain_of,
    values_of,
)
from kvrt.spi.plain import unpack

OUT, WIDTH = 48, 256
Made = tuple[dict[str, Tensor], Tensor]
"""The tensors of a matrix, and its values."""


def bits_of(words: Tensor, index: int, bits: int) -> int:
    """Number `index` of `bits` bits in a line of int32 words."""
    at = index * bits
    word = int(words[at // 32]) & 0xFFFFFFFF
    return word >> at % 32 & (1 << bits) - 1


def random_words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).int()


def random_scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape) * 0.1 - 0.05).to(dtype)


def gptq(bits: int, group: int, *, less_one: bool, ordered: bool) -> tuple[Method, Made]:
    groups = WIDTH // (group or WIDTH)
    qweight, qzeros = random_words(WIDTH * bits // 32, OUT), random_words(groups, OUT * bits // 32)
    scales = random_scales(groups, OUT)
    group_of = torch.arange(WIDTH) // (group or WIDTH)
    if ordered:
        group_of = group_of[torch.randperm(WIDTH)]
    values = torch.empty(OUT, WIDTH)
    for o in range(OUT):
        for i in range(WIDTH):
            g = int(group_of[i])
            zero = bits_of(qzeros[g], o, bits)
            zero = (zero + 1) % 2**bits if less_one else zero
            code = bits_of(qweight[:, o], i, bits)
            values[o, i] = scales[g, o].float() * (code - zero)
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": scales, "g_idx": group_of.int()}
    return GPTQ(bits, group, less_one, ordered), (tensors, values)


def awq() -> tuple[Method, Made]:
    groups = WIDTH // 128
    qweight, qzeros = random_words(WIDTH, OUT // 8), random_words(groups, OUT // 8)
    scales = random_scales(groups, OUT)
    place = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # of each of eight in its word
    values = torch.empty(OUT, WIDTH)
    for o in range(OUT):
        for i in range(WIDTH):
            code = bits_of(qweight[i, o // 8 : o // 8 + 1], place[o % 8], 4)
            zero = bits_of(qzeros[i // 128, o // 8 : o // 8 + 1], place[o % 8], 4)
            values[o, i] = scales[i // 128, o].float() * (code - zero)
    return AWQ(128), ({"qweight": qweight, "qzeros": qzeros, "scales": scales}, values)


def pack_quantized(
    bits: int, group: int, *, symmetric: bool, ordered: bool = False
) -> tuple[Method, Made]:
    groups, middle = WIDTH // (group or WIDTH), 2 ** (bits - 1)
    packed = random_words(OUT, WIDTH * bits // 32)
    zeros = random_words(-(-OUT * bits // 32), groups)
    scales = random_scales(OUT, groups, dtype=torch.bfloat16)
    group_of = torch.arange(WIDTH) // (group or WIDTH)
    if ordered:
        group_of = group_of[torch.randperm(WIDTH)]
    values = torch.empty(OUT, WIDTH)
    for o in range(OUT):
        for i in range(WIDTH):
            g = int(group_of[i])
            zero = 0 if symmetric else bits_of(zeros[:, g], o, bits) - middle
            code = bits_of(packed[o], i, bits) - middle
            values[o, i] = scales[o, g].float() * (code - zero)
    tensors = {"weight_packed": packed, "weight_scale": scales}
    tensors["weight_shape"] = torch.tensor([OUT, WIDTH])
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    if ordered:
        tensors["weight_g_idx"] = group_of.int()
    return PackQuantized(bits, group, symmetric, ordered), (tensors, values)


def int_quantized(group: int, *, symmetric: bool) -> tuple[Method, Made]:
    groups = WIDTH // (group or WIDTH)
    weight, zeros = (torch.randint(-128, 128, (OUT, n)).to(torch.int8) for n in (WIDTH, groups))
    scales = random_scales(OUT, groups, dtype=torch.float32)
    zero = 0 if symmetric else zeros.float().repeat_interleave(WIDTH // groups, 1)
    values = scales.repeat_interleave(WIDTH // groups, 1) * (weight.float() - zero)
    tensors = {"weight": weight, "weight_scale": scales}
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    return IntQuantized(group, symmetric), (tensors, values)


def float8(block: tuple[int, int], shape: tuple[int, ...], name: str) -> tuple[Method, Made]:
    weight = (torch.randn(OUT, WIDTH) * 100).to(torch.float8_e4m3fn)
    scales = random_scales(*shape, dtype=torch.float32)
    by_block = scales.view(-(-OUT // (block[0] or OUT)), -1)
    values = torch.empty(OUT, WIDTH)
    for o in range(OUT):
        for i in range(WIDTH):
            row, column = o // (block[0] or OUT), i // (block[1] or WIDTH)
            values[o, i] = weight[o, i].float() * by_block[row, column]
    return Float8(name, block), ({"weight": weight, name: scales}, values)


CASES: dict[str, Callable[[], tuple[Method, Made]]] = {
    "gptq of 4 bits": lambda: gptq(4, 128, less_one=True, ordered=False),
    "gptq of 2 bits": lambda: gptq(2, 64, less_one=True, ordered=False),
    "gptq of 8 bits by rows": lambda: gptq(8, 0, less_one=True, ordered=False),
    "gptq, version 2": lambda: gptq(4, 128, less_one=False, ordered=False),
    "gptq in another order": lambda: gptq(4, 32, less_one=True, ordered=True),
    "awq": awq,
    "packed of 4 bits": lambda: pack_quantized(4, 128, symmetric=True),
    "packed of 4 bits with zeros": lambda: pack_quantized(4, 32, symmetric=False),
    "packed of 8 bits by rows": lambda: pack_quantized(8, 0, symmetric=True),
    "packed in another order": lambda: pack_quantized(4, 64, symmetric=True, ordered=True),
    "int8 by rows": lambda: int_quantized(0, symmetric=True),
    "int8 with zeros": lambda: int_quantized(64, symmetric=False),
    "fp8 by blocks": lambda: float8((32, 128), (2, 2), "weight_scale_inv"),
    "fp8 by rows": lambda: float8((1, 0), (OUT, 1), "weight_scale"),
    "fp8 by tensor": lambda: float8((0, 0), (), "weight_scale"),
    "fp8 by tensor, of one": lambda: float8((0, 0), (1,), "weight_scale"),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_definition_bit_for_bit(name: str) -> None:
    torch.manual_seed(len(name))
    method, (tensors, values) = CASES[name]()
    scales = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    (found,) = (t for key, t in tensors.items() if "scale" in key)
    format, held = method.format(scales[found.dtype]), method.read(tensors)
    assert torch.equal(values_of(format, held), values)
    if not method.ordered:
        plain = plain_of(format, held)
        assert torch.equal(unpack(format, plain, WIDTH), values)


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_of_the_shapes_that_are_wanted(name: str) -> None:
    dtypes = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.float16: "F16",
              torch.bfloat16: "BF16", torch.float32: "F32",
              torch.float8_e4m3fn: "F8_E4M3"}  # fmt: skip
    method, (tensors, _) = CASES[name]()
    wanted = method.wanted(OUT, WIDTH)
    assert method.first in tensors
    assert tensors.keys() <= wanted.keys()
    assert {key for key, each in wanted.items() if not each.optional} <= tensors.keys()
    for key, tensor in tensors.items():
        assert tuple(tensor.shape) in wanted[key].shapes
        assert dtypes[tensor.dtype] in wanted[key].dtypes
