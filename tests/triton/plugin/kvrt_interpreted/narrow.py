"""Makes Triton's interpreter compute with bfloat16 and fp8 (E4M3) as hardware does.

The interpreter keeps both as their bits, in unsigned integers. It takes bfloat16 for integers in
products, sums and conversions; converting to E4M3 it does not carry into the exponent, and rounds
half away from zero. Here they are float32 in between, and rounded to nearest even.
Seen in Triton 3.6.0 and 3.9.0. And numpy does not warn of what is no number, as of 0 * inf.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Handle = interpreter.TensorHandle


def widened(handle: Any) -> Any:
    """A bfloat16 or E4M3 handle as float32; any other as it is."""
    kept = handle.dtype.scalar
    if kept == tl.bfloat16 and handle.data.dtype == np.uint16:
        return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if kept == tl.float8e4nv and handle.data.dtype == np.uint8:
        codes = torch.tensor(handle.data).view(torch.float8_e4m3fn)
        return Handle(codes.float().numpy(), tl.float32)
    return handle


def narrowed(values: NDArray[np.float32], dtype: tl.dtype) -> Any:
    """float32 values as a bfloat16 or E4M3 handle, rounded to nearest even."""
    numbers = torch.tensor(np.asarray(values, np.float32))
    if dtype == tl.bfloat16:
        bits = numbers.bfloat16().view(torch.uint16)
    else:
        bits = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    return Handle(bits.numpy(), dtype)


def mend() -> None:
    """Replace the interpreter's operations; once a process is enough, twice does no harm."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_mended", False):
        return
    builder._mended = True
    dot, binary, cast = builder.create_dot, builder.binary_op, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return dot(self, widened(a), widened(b), c, *rest)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        a, b = widened(left), widened(right)
        with np.errstate(invalid="ignore"):
            if a is left or b is right:
                return binary(self, left, right, op)
            return narrowed(op(a.data, b.data), left.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any, *rounding: Any) -> Any:
        wide, kept = widened(source), target.scalar
        if kept == source.dtype.scalar:
            return source
        if kept in (tl.bfloat16, tl.float8e4nv):
            return narrowed(wide.data, kept)
        return cast(self, wide, target)

    builder.create_dot = create_dot
    builder.binary_op = binary_op
    builder.cast_impl = cast_impl
    for name in ("create_fp_trunc", "create_fp_ext", "create_fp_to_fp"):
        setattr(builder, name, cast_impl)
