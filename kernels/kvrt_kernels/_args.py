"""What every operator does with its arguments: check them once, and turn them into addresses."""

from typing import Final

import torch
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import KVFormat

DTYPE_CODE: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of `enum class Dtype` in native/api.h."""

DTYPE_OF_CODES: Final = 3
"""Another of them: weights that are codes, in panels."""

DTYPE_OF_EXACT_CODES: Final = 4
"""And one: the same, multiplied with activations as they are."""

FORMAT_CODE: Final[dict[KVFormat, int]] = {
    "float32": 0,
    "bfloat16": 1,
    "float16": 2,
    "int8": 3,
    "int4": 4,
}
"""The numbers of `enum class Format`."""


def threads_or_default(threads: int | None) -> int:
    """`threads`, or as many as torch uses."""
    return torch.get_num_threads() if threads is None else threads


def address(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def need(ok: bool, message: str, fix: str = "") -> None:
    """Raise `ContractError` unless `ok`."""
    if not ok:
        raise ContractError(message, fix=fix)


def check_rows(name: str, x: Tensor, columns: int) -> None:
    """`x` must be float32 rows, each `columns` contiguous elements."""
    if (
        x.dtype is not torch.float32
        or x.dim() != 2
        or x.shape[1] != columns
        or (x.stride(1) != 1 and x.numel() > 0)
    ):
        raise ContractError(
            f"{name} must be float32 [rows, {columns}] with contiguous rows, "
            f"not {x.dtype} {list(x.shape)} with strides {list(x.stride())}"
        )


def check_heads(name: str, x: Tensor, head_dim: int) -> None:
    """`x` must be float32 [tokens, heads, head_dim], each token's heads contiguous."""
    if (
        x.dtype is not torch.float32
        or x.dim() != 3
        or x.shape[2] != head_dim
        or x.stride(2) != 1
        or (x.stride(1) != head_dim and x.shape[1] != 1)
    ):
        raise ContractError(
            f"{name} must be float32 [tokens, heads, {head_dim}] with each token's heads "
            f"contiguous, not {x.dtype} {list(x.shape)} with strides {list(x.stride())}"
        )


def check_vector(name: str, x: Tensor | None, size: int) -> None:
    """`x`, if given, must be float32 [size], contiguous."""
    if x is not None and (
        x.dtype is not torch.float32 or x.shape != (size,) or not x.is_contiguous()
    ):
        raise ContractError(
            f"{name} must be contiguous float32 [{size}], not {x.dtype} {list(x.shape)}"
        )
