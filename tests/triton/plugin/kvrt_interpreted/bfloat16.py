"""Makes Triton's interpreter compute with bfloat16 as hardware does.

The interpreter keeps bfloat16 numbers as their bits, in uint16, and takes those for integers in
products, sums and conversions. `mend` computes them in float32 and rounds to nearest even.
Seen in Triton 3.6.0 and 3.9.0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Handle = interpreter.TensorHandle


def widened(handle: Any) -> Any:
    """A bfloat16 handle as float32; any other as it is."""
    if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
        return handle
    return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def narrowed(values: NDArray[np.float32]) -> Any:
    """float32 values as a bfloat16 handle, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    quiet = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    return Handle(quiet.reshape(np.shape(values)), tl.bfloat16)


def mend() -> None:
    """Replace the interpreter's operations; once a process is enough, twice does no harm."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_bfloat16_mended", False):
        return
    builder._bfloat16_mended = True
    dot, binary, cast = builder.create_dot, builder.binary_op, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), c, *rest)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        a, b = widened(left), widened(right)
        if a is left or b is right:
            return binary(self, left, right, op)
        return narrowed(op(a.data, b.data))

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        wide = widened(source)
        if target.scalar == tl.bfloat16 and wide.dtype.scalar != tl.bfloat16:
            return source if wide is not source else narrowed(wide.data.astype(np.float32))
        return cast(self, wide, target)

    builder.create_dot = create_dot
    builder.binary_op = binary_op
    builder.cast_impl = cast_impl
    for name in ("create_fp_trunc", "create_fp_ext"):
        setattr(builder, name, lambda self, source, target: self.cast_impl(source, target))
