"""What families put around products: see `kvrt.spi.BranchOps`. Nothing is checked here."""

from typing import Final

import torch
from torch import Tensor

from kvrt.spi import PlainActivation
from kvrt_kernels._args import address, threads_or_default
from kvrt_kernels._load import native

MAP_CODE: Final[dict[PlainActivation, int]] = {"gelu": 0, "gelu_tanh": 1, "relu2": 2}
SCALED: Final = 3
"""The numbers of `enum class Map` in native/api.h."""


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    rows, size = x.shape
    y = torch.empty(rows, size) if out is None else out
    native().layer_norm(
        address(x),
        x.stride(0),
        address(weight),
        address(bias),
        address(y),
        size,
        rows,
        size,
        eps,
        threads_or_default(threads),
    )
    return y


def norm_rows(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    threads: int | None = None,
) -> None:
    rows, size = x.shape
    y = x if out is None else out
    native().rms_norm(
        address(x),
        x.stride(0),
        address(weight),
        address(y),
        y.stride(0),
        rows,
        size,
        eps,
        threads_or_default(threads),
    )


def add_branch(
    x: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    eps: float,
    scale: float,
    threads: int | None = None,
) -> None:
    rows, size = x.shape
    native().add_branch(
        address(branch),
        branch.stride(0),
        address(weight),
        address(x),
        x.stride(0),
        rows,
        size,
        eps,
        scale,
        threads_or_default(threads),
    )


def activate(x: Tensor, activation: PlainActivation, threads: int | None = None) -> None:
    _map(MAP_CODE[activation], x, None, threads)


def scale_rows(x: Tensor, factors: Tensor, threads: int | None = None) -> None:
    _map(SCALED, x, factors, threads)


def _map(code: int, x: Tensor, factors: Tensor | None, threads: int | None) -> None:
    count = threads_or_default(threads)
    native().map(code, address(x), x.stride(0), address(factors), *x.shape, count)
