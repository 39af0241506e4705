"""What families put around products: `TritonBranches` is a `kvrt.spi.BranchOps`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import PlainActivation
from kvrt_kernels.triton import norm
from kvrt_kernels.triton.configs import options

BLOCK = 1024


@triton.jit
def map_kernel(x, factors, stride, size, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    """BLOCK elements of one row, in place: activated, or times the row's factor. Grid: [rows,
    blocks of a row].

    gelu        x / 2 * (1 + erf(x / sqrt(2)))
    gelu_tanh   the same by tanh, as in `gate`
    relu2       max(x, 0)^2
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < size
    at = x + row * stride + n
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "gelu":
        value = value * 0.5 * (1 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        power = 1.5957691216057308 * (value + 0.044715 * value * value * value)
        value = value / (1 + tl.exp(tl.minimum(-power, 88.0)))
    elif ACTIVATION == "relu2":
        value = tl.maximum(value, 0.0) * tl.maximum(value, 0.0)
    else:
        value = value * tl.load(factors + row).to(tl.float32)
    tl.store(at, value.to(x.dtype.element_ty), mask=mask)


class TritonBranches:
    """See `kvrt.spi.BranchOps`. The calls check nothing; `kvrt.wrappers.Checked` has."""

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor | None = None
    ) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
        norm.launch(x, y, weight, eps, bias=bias, centred=True)
        return y

    def norm_rows(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> None:
        norm.launch(x, x if out is None else out, weight, eps)

    def add_branch(
        self, x: Tensor, branch: Tensor, weight: Tensor | None, eps: float, scale: float
    ) -> None:
        norm.launch(branch, x, weight, eps, added=x, scale=scale)

    def activate(self, x: Tensor, activation: PlainActivation) -> None:
        _map(x, None, activation)

    def scale_rows(self, x: Tensor, factors: Tensor) -> None:
        _map(x, factors, "none")


def _map(x: Tensor, factors: Tensor | None, activation: str) -> None:
    rows, size = x.shape
    if rows:
        map_kernel[(rows, triton.cdiv(size, BLOCK))](
            x,
            factors,
            x.stride(0),
            size,
            BLOCK=BLOCK,
            ACTIVATION=activation,
            **options(warps=4),
        )
