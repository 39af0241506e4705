"""Faults of matrices of low rank."""

from dataclasses import replace

from torch import Tensor

from kvrt.spi import Activation, LowRankRows
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedLowRankOps


class ForgetsTheLastSegment(WrappedLowRankOps):
    def add(self, x: Tensor, rows: LowRankRows, out: Tensor) -> None:
        super().add(x, LowRankRows(rows.segments[:-1] or rows.segments), out)


class AddsAllPartsToTheFirstRows(WrappedLowRankOps):
    def add(self, x: Tensor, rows: LowRankRows, out: Tensor) -> None:
        segments = [
            (start, stop, replace(added, parts=tuple((0, b) for _, b in added.parts)))
            for start, stop, added in rows.segments
        ]
        super().add(x, LowRankRows(tuple(segments)), out)


class GatesByUp(WrappedLowRankOps):
    def add_gated(
        self, x: Tensor, rows: LowRankRows, both: Tensor, activation: Activation, out: Tensor
    ) -> None:
        super().add(x, rows, both)
        nothing = replace(rows.segments[0][2], parts=())
        turned = both.roll(both.shape[1] // 2, 1)
        super().add_gated(x, LowRankRows(((0, 1, nothing),)), turned, activation, out)


class GatesByAnother(WrappedLowRankOps):
    def add_gated(
        self, x: Tensor, rows: LowRankRows, both: Tensor, activation: Activation, out: Tensor
    ) -> None:
        super().add_gated(x, rows, both, "gelu_tanh", out)


MUTANTS = {
    "forgets_the_last_segment": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=ForgetsTheLastSegment
    ),
    "adds_all_parts_to_the_first_rows": Mutant(
        "low_rank::test_each_token_has_its_own_added", low_rank=AddsAllPartsToTheFirstRows
    ),
    "gates_by_up": Mutant("low_rank::test_gates_follow", low_rank=GatesByUp),
    "gates_by_another": Mutant("low_rank::test_gates_follow", low_rank=GatesByAnother),
}
