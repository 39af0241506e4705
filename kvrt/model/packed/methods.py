"""How Hugging Face checkpoints keep quantised matrices: which tensors, and what they hold.

A matrix ``X.weight`` of [out, in] is kept as several tensors, by the method that config.json names.
Its values are ``scale * (code - zero)``, where `group` elements of a row share scale and zero.

    gptq                X.qweight  int32 [in * bits / 32, out], codes along in, lowest bits first
                        X.qzeros   int32 [groups, out * bits / 32], along out; less 1, unless v2
                        X.scales  [groups, out];  X.g_idx  int32 [in], the group of each column
                        (Frantar et al. 2022, arXiv 2210.17323; AutoGPTQ, GPTQModel)
    awq                 X.qweight  int32 [in, out / 8], codes along out; the eight of a word,
                        lowest bits first, are numbers 0, 2, 4, 6, 1, 3, 5, 7
                        X.qzeros  int32 [groups, out / 8], likewise;  X.scales  [groups, out]
                        (Lin et al. 2023, arXiv 2306.00978)
    compressed-tensors
      pack-quantized    X.weight_packed  int32 [out, in * bits / 32], codes with half their range
                        added;  X.weight_scale  [out, groups];  X.weight_zero_point, packed along
                        out;  X.weight_g_idx  [in], the group of each column
      int-quantized     X.weight  int8;  X.weight_scale  [out, groups];  X.weight_zero_point  int8
      nvfp4-pack-quantized   X.weight_packed  uint8 [out, in / 2], numbers of E2M1, low bits first;
                        X.weight_scale  E4M3 [out, in / 16];  X.weight_global_scale, its divisor
      mxfp4-pack-quantized   likewise, but X.weight_scale  uint8 [out, in / 32], n for 2^(n - 127)
      float-quantized   X.weight  E4M3;  X.weight_scale  of each row, of all, or of blocks
    mxfp4               X_blocks  uint8 [experts, out, in / 32, 16], as mxfp4-pack-quantized;
                        X_scales  [experts, out, in / 32]: of all experts of a layer (gpt-oss)
    fp8                 X.weight  E4M3;  X.weight_scale_inv  [out / block, in / block]
    bitsandbytes        of 8 bits: X.weight  int8;  X.SCB  [out], 127 times the scales; of 4
                        bits see `nf4`

Activations that a method would have rounded as well are not: kvrt multiplies them as it does all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvrt.model.packed.ggml import E2M1
from kvrt.model.packed.method import Held, Unreadable, Wanted
from kvrt.spi import WeightFormat
from kvrt.spi.matrices import Scale

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class GPTQ:
    """See the module.

    Args:
        bits: 2, 3, 4 or 8.
        group: 0: a whole row.
        less_one: zeros are stored less 1, modulo 2^bits.
        ordered: columns may be in another order than that of their groups (``desc_act``).
    """

    bits: int
    group: int
    less_one: bool = True
    ordered: bool = False
    first: str = "qweight"
    scales: str = "scales"

    @property
    def stays(self) -> bool:
        return not self.ordered

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        groups = width // (self.group or width)
        return {
            "qweight": Wanted(("I32",), ((width * self.bits // 32, out),)),
            "qzeros": Wanted(("I32",), ((groups, out * self.bits // 32),)),
            "scales": Wanted(FLOATS, ((groups, out),)),
            "g_idx": Wanted(("I32", "I64"), ((width,),), optional=True),
        }

    def format(self, scales: str) -> WeightFormat:
        return _format(self.bits, self.group, scales, symmetric=False)

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        codes = _numbers(tensors["qweight"].T, self.bits)
        zeros = _numbers(tensors["qzeros"], self.bits)
        if self.less_one:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        group_of = tensors["g_idx"].long() if "g_idx" in tensors else None
        return Held(codes, tensors["scales"].T, zeros.T, group_of)


@dataclass(frozen=True, slots=True)
class AWQ:
    """See the module."""

    group: int
    stays: bool = True
    ordered: bool = False
    first: str = "qweight"
    scales: str = "scales"

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        groups = width // (self.group or width)
        return {
            "qweight": Wanted(("I32",), ((width, out // 8),)),
            "qzeros": Wanted(("I32",), ((groups, out // 8),)),
            "scales": Wanted(FLOATS, ((groups, out),)),
        }

    def format(self, scales: str) -> WeightFormat:
        return _format(4, self.group, scales, symmetric=False)

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        codes, zeros = (_in_order(tensors[name]).T for name in ("qweight", "qzeros"))
        return Held(codes, tensors["scales"].T, zeros)


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """See the module, and `GPTQ`."""

    bits: int
    group: int
    symmetric: bool
    ordered: bool = False
    first: str = "weight_packed"
    scales: str = "weight_scale"

    @property
    def stays(self) -> bool:
        return not self.ordered

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        groups = width // (self.group or width)
        wanted = {
            "weight_packed": Wanted(("I32",), ((out, width * self.bits // 32),)),
            "weight_scale": Wanted(FLOATS, ((out, groups),)),
            "weight_shape": Wanted(("I64", "I32"), ((2,),), optional=True),
            "weight_g_idx": Wanted(("I32", "I64"), ((width,),), optional=True),
        }
        if not self.symmetric:
            shape = (-(-out * self.bits // 32), groups)
            wanted["weight_zero_point"] = Wanted(("I32",), (shape,))
        return wanted

    def format(self, scales: str) -> WeightFormat:
        return _format(self.bits, self.group, scales, self.symmetric)

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        scales = tensors["weight_scale"]
        codes = _numbers(tensors["weight_packed"], self.bits)
        zeros = None
        if not self.symmetric:
            zeros = _numbers(tensors["weight_zero_point"].T, self.bits).T[: len(scales)]
        group_of = tensors["weight_g_idx"].long() if "weight_g_idx" in tensors else None
        return Held(codes, scales, zeros, group_of)


@dataclass(frozen=True, slots=True)
class IntQuantized:
    """See the module.

    Args:
        group: 0: a whole row.
        symmetric: there are no zeros.
        scales: the end of the name of the tensor of scales.
        times: what scales are stored times: those of ``bitsandbytes`` are a row's largest number.
    """

    group: int
    symmetric: bool
    scales: str = "weight_scale"
    times: int = 1
    stays: bool = True
    ordered: bool = False
    first: str = "weight"

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        groups = width // (self.group or width)
        wanted = {
            "weight": Wanted(("I8",), ((out, width),)),
            self.scales: Wanted(FLOATS, ((out, groups), (out,))[: 1 + (groups == 1)]),
        }
        if not self.symmetric:
            wanted["weight_zero_point"] = Wanted(("I8",), ((out, groups),))
        if self.times != 1:
            wanted["weight_format"] = Wanted(("U8",), ((),), optional=True)
        return wanted

    def format(self, scales: str) -> WeightFormat:
        return _format(8, self.group, scales, self.symmetric)

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        codes, scales = tensors["weight"].view(torch.uint8) ^ 128, tensors[self.scales]
        zeros = None if self.symmetric else tensors["weight_zero_point"].view(torch.uint8) ^ 128
        if self.times != 1:
            if "weight_format" in tensors and int(tensors["weight_format"]):
                raise Unreadable("weight_format", "says that codes are not row after row")
            scales = scales.float() / self.times
        return Held(codes, scales.view(len(codes), -1), zeros)


@dataclass(frozen=True, slots=True)
class Float8:
    """See the module.

    Args:
        scales: the end of the name of the tensor of scales.
        block: rows and columns that share a scale; 0: all of them.
    """

    scales: str
    block: tuple[int, int]
    stays: bool = True
    ordered: bool = False
    first: str = "weight"

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        rows, columns = self.block
        shape = (-(-out // (rows or out)), -(-width // (columns or width)))
        shapes = (shape, (), (1,)) if shape == (1, 1) else (shape, shape[:1])[: 1 + (columns == 0)]
        return {
            "weight": Wanted(("F8_E4M3",), ((out, width),)),
            self.scales: Wanted(FLOATS, shapes),
            "input_scale": Wanted(FLOATS, ((), (1,)), optional=True),
        }

    def format(self, scales: str) -> WeightFormat:
        columns = self.block[1]
        name = f"fp8 by {columns}" if columns else "fp8 by row"
        return WeightFormat(name, 8, columns, "float32", codes="e4m3")

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        codes, scales = tensors["weight"].view(torch.uint8), tensors[self.scales].float()
        out, rows = len(codes), self.block[0] or len(codes)
        scales = scales.view(-(-out // rows), -1)
        return Held(codes, scales.repeat_interleave(rows, 0)[:out])


@dataclass(frozen=True, slots=True)
class Float4:
    """See the module; the numbers of E2M1 are half those of `E2M1`, as scales then are, too.

    Args:
        group: 16, with scales of E4M3 and a divisor of all; or 32, with powers of two.
        scales: the end of the name of the tensor of scales.
        blocks: codes have three dimensions: those of a group are the last.
    """

    group: int
    stays: bool = True
    ordered: bool = False
    first: str = "weight_packed"
    scales: str = "weight_scale"
    blocks: bool = False

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        scales = (out, width // self.group)
        codes = (*scales, self.group // 2) if self.blocks else (out, width // 2)
        wanted = {
            self.first: Wanted(("U8",), (codes,)),
            self.scales: Wanted(("F8_E4M3" if self._divided else "U8",), (scales,)),
        }
        if self._divided:
            wanted["weight_global_scale"] = Wanted(("F32",), ((1,), ()))
            wanted["input_global_scale"] = Wanted(("F32",), ((1,), ()), optional=True)
        return wanted

    def format(self, scales: str) -> WeightFormat:
        return WeightFormat(f"fp4 by {self.group}", 4, self.group, "float32", table=E2M1)

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        codes, stored = _numbers(tensors[self.first].flatten(1), 4), tensors[self.scales]
        if self._divided:
            return Held(codes, stored.float() / tensors["weight_global_scale"] / 2)
        # 255 is no number: its power times the largest of the table is not finite either.
        return Held(codes, torch.pow(2.0, stored.double() - 128).float())

    @property
    def _divided(self) -> bool:
        return self.group == 16


def _format(bits: int, group: int, scales: str, symmetric: bool) -> WeightFormat:
    """Of codes with a zero of their own for each group, or with the middle of their range."""
    name = f"int{bits} by {group}" if group else f"int{bits} by row"
    kept: Scale = "float16" if scales == "F16" else "float32"
    if symmetric:
        return WeightFormat(name, bits, group, kept, zero=1 << bits - 1)
    return WeightFormat(name, bits, group, kept, offset="zeros")


def _numbers(words: Tensor, bits: int) -> Tensor:
    """The whole numbers in words of 32 bits, lowest first: uint8 [rows, numbers]."""
    # The bytes of a word are in the same order, on the machines that kvrt runs on.
    in_bytes = words.contiguous().view(torch.uint8)
    mask = (1 << bits) - 1
    if bits == 3:  # eight of them are three bytes
        low, middle, high = in_bytes.int().view(len(in_bytes), -1, 3).unbind(2)
        eight = low | middle << 8 | high << 16
        return torch.stack([eight >> at & mask for at in range(0, 24, 3)], 2).flatten(1).byte()
    parts = [in_bytes >> shift & mask for shift in range(0, 8, bits)]
    return torch.stack(parts, 2).flatten(1)


def _in_order(words: Tensor) -> Tensor:
    """The eight numbers of AWQ's words, in order: uint8 [rows, numbers]."""
    stored = _numbers(words, 4).view(len(words), -1, 8)
    return stored[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1)
