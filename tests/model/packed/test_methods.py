"""What quantised Hugging Face checkpoints hold, number by number as each method defines it."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvrt.model.packed.method import Method, plain_of, values_of
from kvrt.model.packed.methods import AWQ, GPTQ, Float4, Float8, IntQuantized, PackQuantized
from kvrt.model.packed.nf4 import FourBit
from kvrt.spi.plain import unpack

OUT, WIDTH = 96, 256
Shape = tuple[int, int]
Made = tuple[dict[str, Tensor], Tensor]
"""The tensors of a matrix, and its values."""


def bits_of(words: Tensor, index: int, bits: int) -> int:
    """Number `index` of `bits` bits in a line of int32 words."""
    at = index * bits
    low, *high = [int(word) & 0xFFFFFFFF for word in words[at // 32 : at // 32 + 2]]
    return (low | sum(high) << 32) >> at % 32 & (1 << bits) - 1


def random_words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).int()


def random_scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Of few bits, so that they are as exact in any dtype, and 32 times smaller."""
    return (torch.randint(-200, 200, shape) / 2**12).to(dtype)


def gptq(
    shape: Shape, bits: int, group: int, *, less_one: bool = True, ordered: bool = False
) -> tuple[Method, Made]:
    out, width = shape
    groups = width // (group or width)
    qweight, qzeros = random_words(width * bits // 32, out), random_words(groups, out * bits // 32)
    scales = random_scales(groups, out)
    group_of = torch.arange(width) // (group or width)
    if ordered:
        group_of = group_of[torch.randperm(width)]
    values = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            g = int(group_of[i])
            zero = bits_of(qzeros[g], o, bits)
            zero = (zero + 1) % 2**bits if less_one else zero
            code = bits_of(qweight[:, o], i, bits)
            values[o, i] = scales[g, o].float() * (code - zero)
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": scales, "g_idx": group_of.int()}
    return GPTQ(bits, group, less_one, ordered), (tensors, values)


def awq(shape: Shape, group: int) -> tuple[Method, Made]:
    out, width = shape
    groups = width // group
    qweight, qzeros = random_words(width, out // 8), random_words(groups, out // 8)
    scales = random_scales(groups, out)
    place = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # of each of eight in its word
    values = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            code = bits_of(qweight[i, o // 8 : o // 8 + 1], place[o % 8], 4)
            zero = bits_of(qzeros[i // group, o // 8 : o // 8 + 1], place[o % 8], 4)
            values[o, i] = scales[i // group, o].float() * (code - zero)
    return AWQ(group), ({"qweight": qweight, "qzeros": qzeros, "scales": scales}, values)


def pack_quantized(
    shape: Shape, bits: int, group: int, *, symmetric: bool, ordered: bool = False
) -> tuple[Method, Made]:
    out, width = shape
    groups, middle = width // (group or width), 2 ** (bits - 1)
    packed = random_words(out, width * bits // 32)
    zeros = random_words(-(-out * bits // 32), groups)
    scales = random_scales(out, groups, dtype=torch.bfloat16)
    group_of = torch.arange(width) // (group or width)
    if ordered:
        group_of = group_of[torch.randperm(width)]
    values = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            g = int(group_of[i])
            zero = 0 if symmetric else bits_of(zeros[:, g], o, bits) - middle
            code = bits_of(packed[o], i, bits) - middle
            values[o, i] = scales[o, g].float() * (code - zero)
    tensors = {"weight_packed": packed, "weight_scale": scales}
    tensors["weight_shape"] = torch.tensor([out, width])
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    if ordered:
        tensors["weight_g_idx"] = group_of.int()
    return PackQuantized(bits, group, symmetric, ordered), (tensors, values)


def int_quantized(shape: Shape, group: int, *, symmetric: bool) -> tuple[Method, Made]:
    out, width = shape
    groups = width // (group or width)
    weight, zeros = (torch.randint(-128, 128, (out, n)).to(torch.int8) for n in (width, groups))
    scales = random_scales(out, groups, dtype=torch.float32)
    zero = 0 if symmetric else zeros.float().repeat_interleave(width // groups, 1)
    values = scales.repeat_interleave(width // groups, 1) * (weight.float() - zero)
    tensors = {"weight": weight, "weight_scale": scales}
    if not symmetric:
        tensors["weight_zero_point"] = zeros
    return IntQuantized(group, symmetric), (tensors, values)


def float8(
    shape: Shape, block: Shape, scale_shape: tuple[int, ...], name: str
) -> tuple[Method, Made]:
    out, width = shape
    weight = (torch.randn(out, width) * 100).to(torch.float8_e4m3fn)
    scales = random_scales(*scale_shape, dtype=torch.float32)
    by_block = scales.view(-(-out // (block[0] or out)), -1)
    values = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            row, column = o // (block[0] or out), i // (block[1] or width)
            values[o, i] = weight[o, i].float() * by_block[row, column]
    return Float8(name, block), ({"weight": weight, name: scales}, values)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def float4(shape: Shape, group: int) -> tuple[Method, Made]:
    out, width = shape
    packed = torch.randint(0, 256, (out, width // 2), dtype=torch.uint8)
    divisor = torch.tensor([2.7])
    if group == 16:
        stored = (torch.rand(out, width // 16) * 4 + 0.1).to(torch.float8_e4m3fn)
        scales = stored.float() / divisor
    else:
        stored = torch.randint(122, 128, (out, width // 32)).to(torch.uint8)
        scales = 2.0 ** (stored.float() - 127)
    values = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            code = int(packed[o, i // 2]) >> 4 * (i % 2) & 15
            values[o, i] = scales[o, i // group] * E2M1[code]
    tensors = {"weight_packed": packed, "weight_scale": stored}
    if group == 16:
        tensors["weight_global_scale"] = divisor
    return Float4(group), (tensors, values)


def four_bit(shape: Shape, kind: str, *, nested: bool) -> tuple[Method, Made]:
    out, width = shape
    packed = torch.randint(0, 256, (out * width // 2, 1), dtype=torch.uint8)
    numbers = torch.rand(16) * 2 - 1
    groups = out * width // 64
    scales = random_scales(groups, dtype=torch.float32)
    tensors = {"weight": packed, "weight.quant_map": numbers, "weight.absmax": scales}
    state: dict[str, object] = {"quant_type": kind, "blocksize": 64, "shape": [out, width]}
    if nested:
        codes = torch.randint(0, 256, (groups,), dtype=torch.uint8)
        means = torch.rand(256) * 2 - 1
        factors = random_scales(-(-groups // 256), dtype=torch.float32)
        scales = torch.stack([means[int(c)] * factors[i // 256] for i, c in enumerate(codes)]) + 0.1
        tensors |= {"weight.absmax": codes, "weight.nested_quant_map": means}
        tensors["weight.nested_absmax"] = factors
        state |= {"nested_blocksize": 256, "nested_offset": 0.1}
    values = torch.empty(out * width)
    for i in range(out * width):
        byte = int(packed[i // 2])
        values[i] = numbers[byte & 15 if i % 2 else byte >> 4] * scales[i // 64]
    said = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = said
    return FourBit(kind, nested), (tensors, values.view(out, width))


def eight_bit(shape: Shape) -> tuple[Method, Made]:
    codes = torch.randint(-127, 128, shape).to(torch.int8)
    largest = random_scales(shape[0], dtype=torch.float32)
    values = (largest / 127).view(-1, 1) * codes.float()
    tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return IntQuantized(0, symmetric=True, scales="SCB", times=127), (tensors, values)


CASES: dict[str, Callable[[Shape], tuple[Method, Made]]] = {
    "gptq of 4 bits": lambda shape: gptq(shape, 4, 32),
    "gptq of 2 bits": lambda shape: gptq(shape, 2, 16),
    "gptq of 3 bits": lambda shape: gptq(shape, 3, 32),
    "gptq of 8 bits by rows": lambda shape: gptq(shape, 8, 0),
    "gptq, version 2": lambda shape: gptq(shape, 4, 32, less_one=False),
    "gptq in another order": lambda shape: gptq(shape, 4, 32, ordered=True),
    "awq": lambda shape: awq(shape, 32),
    "packed of 4 bits": lambda shape: pack_quantized(shape, 4, 32, symmetric=True),
    "packed of 4 bits with zeros": lambda shape: pack_quantized(shape, 4, 32, symmetric=False),
    "packed of 8 bits by rows": lambda shape: pack_quantized(shape, 8, 0, symmetric=True),
    "packed in another order": lambda shape: pack_quantized(
        shape, 4, 32, symmetric=True, ordered=True
    ),
    "int8 by rows": lambda shape: int_quantized(shape, 0, symmetric=True),
    "int8 with zeros": lambda shape: int_quantized(shape, 32, symmetric=False),
    "fp8 by blocks": lambda shape: float8(
        shape, (32, 64), (-(-shape[0] // 32), -(-shape[1] // 64)), "weight_scale_inv"
    ),
    "fp8 by blocks that are cut": lambda shape: float8(
        shape, (36, 40), (-(-shape[0] // 36), -(-shape[1] // 40)), "weight_scale_inv"
    ),
    "fp8 by rows": lambda shape: float8(shape, (1, 0), (shape[0], 1), "weight_scale"),
    "fp8 by tensor": lambda shape: float8(shape, (0, 0), (), "weight_scale"),
    "nvfp4": lambda shape: float4(shape, 16),
    "mxfp4": lambda shape: float4(shape, 32),
    "nf4": lambda shape: four_bit(shape, "nf4", nested=False),
    "nf4, scales in codes": lambda shape: four_bit(shape, "nf4", nested=True),
    "fp4": lambda shape: four_bit(shape, "fp4", nested=False),
    "int8 of bitsandbytes": eight_bit,
    "fp8 by tensor, of one": lambda shape: float8(shape, (0, 0), (1,), "weight_scale"),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_definition_bit_for_bit(name: str) -> None:
    torch.manual_seed(len(name))
    method, (tensors, values) = CASES[name]((OUT, WIDTH))
    scales = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    found = tensors[method.scales]
    format, held = method.format(scales.get(found.dtype, "F32")), method.read(tensors)
    assert torch.equal(values_of(format, held), values)
    if method.stays and format.fits(WIDTH):
        plain = plain_of(format, held)
        assert torch.equal(unpack(format, plain, WIDTH), values)


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_of_the_shapes_that_are_wanted(name: str) -> None:
    dtypes = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.float16: "F16",
              torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8",
              torch.float8_e4m3fn: "F8_E4M3"}  # fmt: skip
    method, (tensors, _) = CASES[name]((OUT, WIDTH))
    wanted = method.wanted(OUT, WIDTH)
    assert method.first in tensors
    assert tensors.keys() <= wanted.keys()
    assert {key for key, each in wanted.items() if not each.optional} <= tensors.keys()
    for key, tensor in tensors.items():
        shapes = wanted[key].shapes
        assert not shapes or tuple(tensor.shape) in shapes
        assert dtypes[tensor.dtype] in wanted[key].dtypes
