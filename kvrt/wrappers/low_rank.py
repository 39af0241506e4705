"""Checks of the optional `LowRankOps`."""

import torch

from kvrt.spi import Activation, LowRank, LowRankOps, LowRankRows, Matrices
from kvrt.wrappers.dense import check_product
from kvrt.wrappers.packed import check_gated, check_weight
from kvrt.wrappers.rules import Facts, broken


class CheckedLowRankOps:
    """`LowRankOps` that refuses what its rules do not allow."""

    def __init__(self, facts: Facts, inner: LowRankOps) -> None:
        self._facts = facts
        self._inner = inner

    def adapted_linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | Matrices,
        rows: LowRankRows,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_weight(self._facts, x, weight)
        check_product(self._facts, x, width, bias, residual, out)
        self._check_rows(x, rows, width)
        return self._inner.adapted_linear(x, weight, rows, bias, residual, out)

    def adapted_gated_linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | Matrices,
        rows: LowRankRows,
        activation: Activation,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_gated(self._facts, x, weight, activation, bias)
        check_product(self._facts, x, width // 2, None, None, out)
        self._check_rows(x, rows, width)
        return self._inner.adapted_gated_linear(x, weight, rows, activation, bias, out)

    def _check_rows(self, x: torch.Tensor, rows: LowRankRows, out: int) -> None:
        last = 0
        for start, stop, added in rows.segments:
            if not last <= start < stop <= len(x):
                rule = f"must ascend, within {len(x)} tokens"
                raise broken("rows.segments", f"{start} to {stop}", rule)
            last = stop
            self._check(added, x.shape[1], out, rows.segments[0][2].a.dtype)
        if not rows.segments:
            raise broken("rows.segments", "none", "must be at least one")

    def _check(self, added: LowRank, width: int, out: int, dtype: torch.dtype) -> None:
        ranks = sum(len(b) for _, b in added.parts)
        self._matrix("a", added.a, (ranks, width), dtype)
        taken: list[range] = []
        for first, b in added.parts:
            own = range(first, first + b.shape[-1])
            if first < 0 or own.stop > out or any(own[0] in r or r[0] in own for r in taken if own):
                rule = f"must be apart, within {out} rows"
                raise broken("parts", f"{first} to {own.stop}", rule)
            taken.append(own)
            self._matrix("b", b, (len(b), len(own)), dtype)

    def _matrix(
        self, name: str, matrix: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self._facts.check_on_device(name, matrix)
        if matrix.shape != shape or matrix.dtype != dtype or not matrix.is_contiguous():
            raise broken(name, matrix, f"must be {dtype} {list(shape)}, contiguous")
        if dtype not in self._facts.weight_dtypes:
            rule = f"must have one of the dtypes {', '.join(self._facts.info.weight_dtypes)}"
            raise broken(name, matrix, rule)
