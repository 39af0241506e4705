"""Faults of products with matrices of low rank added."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import Activation, LowRank, LowRankRows, Matrices
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedLowRankOps


class _AddsOthers(WrappedLowRankOps):
    def adapted_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return super().adapted_linear(x, weight, self.changed(rows), bias, residual, out)

    def changed(self, rows: LowRankRows) -> LowRankRows:
        raise NotImplementedError


class ForgetsTheLastSegment(_AddsOthers):
    def changed(self, rows: LowRankRows) -> LowRankRows:
        return LowRankRows(rows.segments[:-1] or rows.segments)


class AddsAllPartsToTheFirstRows(_AddsOthers):
    def changed(self, rows: LowRankRows) -> LowRankRows:
        return LowRankRows(
            tuple(
                (start, stop, replace(added, parts=tuple((0, b) for _, b in added.parts)))
                for start, stop, added in rows.segments
            )
        )


class ForgetsTheBias(WrappedLowRankOps):
    def adapted_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return super().adapted_linear(x, weight, rows, None, residual, out)


class AddsToFloatsAlone(WrappedLowRankOps):
    def adapted_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if isinstance(weight, tuple):
            rows = LowRankRows(
                tuple((start, stop, _nothing(added)) for start, stop, added in rows.segments)
            )
        return super().adapted_linear(x, weight, rows, bias, residual, out)


class AddsToUpAlone(WrappedLowRankOps):
    def adapted_gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        half = sum(m.out for m in weight) // 2 if isinstance(weight, tuple) else len(weight) // 2
        segments = []
        for start, stop, added in rows.segments:
            parts = tuple(
                (first, torch.cat((b[:, : half - first] * 0, b[:, half - first :]), dim=1))
                if first < half
                else (first, b)
                for first, b in added.parts
            )
            segments.append((start, stop, replace(added, parts=parts)))
        return super().adapted_gated_linear(
            x, weight, LowRankRows(tuple(segments)), activation, bias, out
        )


class GatesByAnother(WrappedLowRankOps):
    def adapted_gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return super().adapted_gated_linear(x, weight, rows, "gelu_tanh", bias, out)


def _nothing(added: LowRank) -> LowRank:
    return replace(added, parts=tuple((first, b * 0) for first, b in added.parts))


MUTANTS = {
    "forgets_the_last_segment": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=ForgetsTheLastSegment
    ),
    "adds_all_parts_to_the_first_rows": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=AddsAllPartsToTheFirstRows
    ),
    "forgets_the_bias_of_adapted_products": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=ForgetsTheBias
    ),
    "adds_to_floats_alone": Mutant(
        "low_rank::test_codes_have_floats_added", low_rank=AddsToFloatsAlone
    ),
    "adds_to_up_alone": Mutant("low_rank::test_gates_follow", low_rank=AddsToUpAlone),
    "gates_by_another": Mutant("low_rank::test_gates_follow", low_rank=GatesByAnother),
}
