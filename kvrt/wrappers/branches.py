"""Checks of the optional `BranchOps`."""

import math
from typing import get_args

import torch

from kvrt.spi import BranchOps, PlainActivation
from kvrt.wrappers.dense import check_product, check_x
from kvrt.wrappers.rules import Facts, broken


class CheckedBranchOps:
    """`BranchOps` that refuses tensors its rules do not allow, in a few microseconds a call."""

    def __init__(self, facts: Facts, inner: BranchOps) -> None:
        self._facts = facts
        self._inner = inner

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_norm(x, weight, eps)
        check_product(self._facts, x, x.shape[1], bias, None, out)
        return self._inner.layer_norm(x, weight, bias, eps, out)

    def norm_rows(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor | None = None,
    ) -> None:
        self._check_norm(x, weight, eps)
        if out is not None:
            check_x(self._facts, out, "out")
            if out.shape != x.shape or out.dtype != x.dtype:
                raise broken("out", tuple(out.shape), "must have the shape and dtype of x")
        self._inner.norm_rows(x, weight, eps, out)

    def add_branch(
        self,
        x: torch.Tensor,
        branch: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        scale: float,
    ) -> None:
        self._check_norm(x, weight, eps)
        check_product(self._facts, x, x.shape[1], None, branch, None, "branch")
        if x.numel() and branch.data_ptr() == x.data_ptr():
            raise broken("branch", branch, "must not be x")
        if not math.isfinite(scale):
            raise broken("scale", scale, "must be finite")
        self._inner.add_branch(x, branch, weight, eps, scale)

    def activate(self, x: torch.Tensor, activation: PlainActivation) -> None:
        check_x(self._facts, x)
        if activation not in get_args(PlainActivation):
            rule = f"must be one of {', '.join(get_args(PlainActivation))}"
            raise broken("activation", repr(activation), rule)
        self._inner.activate(x, activation)

    def scale_rows(self, x: torch.Tensor, factors: torch.Tensor) -> None:
        check_x(self._facts, x)
        self._facts.check_on_device("factors", factors)
        if factors.shape != x.shape[:1] or factors.dtype != x.dtype or not factors.is_contiguous():
            rule = f"must be [{x.shape[0]}] in the dtype of x, {x.dtype}, contiguous"
            raise broken("factors", factors, rule)
        self._inner.scale_rows(x, factors)

    def _check_norm(self, x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> None:
        check_x(self._facts, x)
        if weight is not None:
            self._facts.check_vector("weight", weight, x.shape[1])
        if not 0 <= eps < math.inf:
            raise broken("eps", eps, "must be finite and not negative")
