"""Checks of the optional `ExpertOps`."""

from typing import get_args

import torch

from kvrt.spi import Activation, ExpertOps, Experts, Matrices, Router
from kvrt.wrappers.dense import check_product, check_x
from kvrt.wrappers.rules import Facts, broken


class CheckedExpertOps:
    """`ExpertOps` that refuses what its rules do not allow."""

    def __init__(self, facts: Facts, inner: ExpertOps) -> None:
        self._facts = facts
        self._inner = inner

    def route(
        self,
        logits: torch.Tensor,
        router: Router,
        correction: torch.Tensor | None,
        chosen: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        self._facts.check_open("a mixture of experts")
        self._facts.check_on_device("logits", logits)
        if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
            raise broken("logits", logits, "must be float32 [tokens, experts], contiguous")
        tokens, experts = logits.shape
        size = experts // max(1, router.groups)
        if experts != size * router.groups or not 1 <= router.groups_chosen <= router.groups:
            raise broken("router", router, f"must make {experts} experts groups of equal size")
        usable = size * router.groups_chosen
        if not 1 <= router.chosen <= usable:
            raise broken("router.chosen", router.chosen, f"must be from 1 to {usable}")
        if correction is not None:
            self._facts.check_vector("correction", correction, experts)
        self._check_choice(chosen, weights, tokens)
        if chosen.shape[1] != router.chosen:
            raise broken("chosen", chosen, f"must have {router.chosen} columns")
        self._inner.route(logits, router, correction, chosen, weights)

    def mix(
        self,
        x: torch.Tensor,
        experts: Experts,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        residual: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        check_x(self._facts, x)
        count, width = experts.count, experts.width
        gate_up = self._rows("experts.gate_up", experts.gate_up, count, x.shape[1])
        if gate_up != 2 * width * count:
            raise broken("experts.gate_up", f"{gate_up} rows", f"must be {2 * width * count}")
        rows = self._rows("experts.down", experts.down, count, width)
        if rows % count:
            raise broken("experts.down", f"{rows} rows", f"must be a multiple of {count}")
        if experts.activation not in ("clamped", *get_args(Activation)):
            raise broken("experts.activation", repr(experts.activation), "is not one")
        for name, bias, size in (
            ("experts.gate_up_bias", experts.gate_up_bias, gate_up),
            ("experts.down_bias", experts.down_bias, rows),
        ):
            if bias is not None:
                self._facts.check_floats(name, bias, (count, size // count))
        self._check_choice(chosen, weights, x.shape[0])
        check_product(self._facts, x, rows // count, None, residual, out)
        if residual is not None and not residual.is_contiguous():
            raise broken("residual", residual, "must be contiguous")
        self._inner.mix(x, experts, chosen, weights, residual, out)

    def _check_choice(self, chosen: torch.Tensor, weights: torch.Tensor, tokens: int) -> None:
        for name, tensor, dtype in (
            ("chosen", chosen, torch.int32),
            ("weights", weights, torch.float32),
        ):
            self._facts.check_on_device(name, tensor)
            shape = (tokens, chosen.shape[-1])
            if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
                rule = f"must be {str(dtype).removeprefix('torch.')} {list(shape)}, contiguous"
                raise broken(name, tensor, rule)

    def _rows(self, name: str, weight: torch.Tensor | Matrices, count: int, width: int) -> int:
        """Rows of the weights of all experts."""
        if isinstance(weight, tuple):
            if not weight or len(weight) % count or any(one.width != width for one in weight):
                rule = f"must be as many matrices for each of {count} experts, {width} wide"
                raise broken(name, f"{len(weight)} matrices", rule)
            return sum(matrix.out for matrix in weight)
        self._facts.check_on_device(name, weight)
        if weight.dim() != 2 or weight.shape[1] != width or not weight.is_contiguous():
            raise broken(name, weight, f"must be [rows, {width}], contiguous")
        if weight.dtype not in self._facts.weight_dtypes:
            rule = f"must have one of the dtypes {', '.join(self._facts.info.weight_dtypes)}"
            raise broken(name, weight, rule)
        return weight.shape[0]
