"""Faults of products with packed weights."""

from typing import Any

import torch
from torch import Tensor

from kvrt.spi import Activation, Matrices, Matrix, Rounding, WeightFormat
from kvrt.testing.mutants.mutant import Mutant
from kvrt.testing.packing import BLOCK
from kvrt.wrappers.operators import WrappedPackedMatrices


class _PacksOtherRows(WrappedPackedMatrices):
    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        return super().pack(format, self.changed(format, plain.clone(), width), width, into)

    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        raise NotImplementedError


class SwapsTheNibblesOfCodes(_PacksOtherRows):
    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        if format.bits in (4, 5, 6):
            low = plain[:, : width // 2]
            plain[:, : width // 2] = low << 4 | low >> 4
        return plain


class ForgetsTheHighBits(_PacksOtherRows):
    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        if format.bits in (5, 6):
            plain[:, width // 2 : format.sections(width).codes.end] = 0
        return plain


class ForgetsOffsets(_PacksOtherRows):
    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        plain[:, format.sections(width).offsets.start :] = 0
        return plain


class SharesTheFirstScale(_PacksOtherRows):
    """Of all groups of a row."""

    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        at = format.sections(width).scales
        if format.scale in ("float16", "float32") and at.numbers > 1:
            item = (at.end - at.start) // at.numbers
            first = plain[:, at.start : at.start + item]
            plain[:, at.start : at.end] = first.repeat(1, at.numbers)
        return plain


class SharesScalesOf16(_PacksOtherRows):
    """Between two groups of 16."""

    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        at = format.sections(width).scales
        if format.group == 16 and at.end - at.start == at.numbers:
            plain[:, at.start + 1 : at.end : 2] = plain[:, at.start : at.end : 2]
        return plain


class SharesTheFirstFactor(_PacksOtherRows):
    """Of all blocks of a row, where scales are of two levels."""

    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        at = format.sections(width).scale_factors
        plain[:, at.start : at.end] = plain[:, at.start : at.start + 2].repeat(1, at.numbers)
        return plain


class TakesTheMiddleForZeros(_PacksOtherRows):
    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        if format.offset == "zeros":
            at = format.sections(width).offsets
            plain[:, at.start : at.end] = 1 << format.bits - 1
        return plain


class RoundsWhatItSaysItDoesNot(WrappedPackedMatrices):
    def rounds(self, format: WeightFormat) -> Rounding:
        return "none"


class ScalesAfterTheSum(WrappedPackedMatrices):
    """What is rounded to bfloat16 is then not what would have been unpacked."""

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if bias is None or self.rounds(weight[0].format) != "bfloat16":
            return super().linear(x, weight, bias, residual, out)
        return super().linear(x * 3, weight, bias * 3) / 3


class SwapsThePackedRows(_PacksOtherRows):
    """From the 65th on: such as a panel that is not full."""

    def changed(self, format: WeightFormat, plain: Tensor, width: int) -> Tensor:
        plain[64:] = plain[64:].flip(0)
        return plain


class PacksLate(WrappedPackedMatrices):
    """Reads what lies on the host when the matrix is first used."""

    def __init__(self, device: Any, inner: Any) -> None:
        super().__init__(device, inner)
        self._late: dict[int, tuple[WeightFormat, Tensor, int, Tensor]] = {}

    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        self._late[into.data_ptr()] = format, plain, width, into
        return Matrix(format, into, len(plain), width)

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        for matrix in weight:
            self.inner.pack(*self._late[matrix.data.data_ptr()])
        return super().linear(x, weight, bias, residual, out)


class TakesTheFirstForAll(WrappedPackedMatrices):
    """Reads all matrices of a weight as if they had the format of the first."""

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        first = weight[0]
        row = first.data.numel() // first.out
        weight = tuple(
            Matrix(first.format, m.data, m.out, m.width)
            if m.data.numel() == row * m.out
            else Matrix(first.format, first.data[: row * m.out], m.out, m.width)
            for m in weight
        )
        return super().linear(x, weight, bias, residual, out)


class RoundsWholeRows(WrappedPackedMatrices):
    """With a scale for all of a row of x, instead of one for each 32."""

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        rounded = torch.where(scale > 0, (x / scale).round() * scale, 0)
        return super().linear(rounded.to(x.dtype), weight, bias, residual, out)


class HidesWhatIsNotFinite(WrappedPackedMatrices):
    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return super().linear(x.nan_to_num(0, 0, 0), weight, bias, residual, out)


class ForgetsTheLastBlock(WrappedPackedMatrices):
    """Of 32 features, if there are more than eight."""

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if x.shape[1] > 8 * BLOCK:
            x = torch.cat((x[:, :-BLOCK], torch.zeros_like(x[:, -BLOCK:])), dim=1)
        return super().linear(x, weight, bias, residual, out)


class SwapsPackedGateAndUp(WrappedPackedMatrices):
    def gated_linear(
        self,
        x: Tensor,
        weight: Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if bias is not None and len(weight) == 2:
            bias = torch.cat(bias.chunk(2)[::-1])
        return super().gated_linear(x, weight[::-1], activation, bias, out)


class GathersTheNextRow(WrappedPackedMatrices):
    def rows(self, matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
        return super().rows(matrix, (indices + 1) % matrix.out, out)


class RoundsGatheredRows(WrappedPackedMatrices):
    """To bfloat16, whatever is asked for."""

    def rows(self, matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
        super().rows(matrix, indices, out)
        return out.copy_(out.bfloat16())


class TakesTwiceTheMemory(WrappedPackedMatrices):
    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        return 2 * super().nbytes(format, out, width)

    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        matrix = super().pack(format, plain, width, into[: len(into) // 2])
        return Matrix(format, into, matrix.out, width)


MUTANTS = {
    "swaps_the_nibbles_of_codes": Mutant("packed::test_linear", packed=SwapsTheNibblesOfCodes),
    "forgets_the_high_bits": Mutant("packed::test_linear", packed=ForgetsTheHighBits),
    "forgets_offsets": Mutant("packed::test_linear", packed=ForgetsOffsets),
    "shares_the_first_scale": Mutant("packed::test_linear", packed=SharesTheFirstScale),
    "shares_scales_of_16": Mutant("packed::test_linear", packed=SharesScalesOf16),
    "shares_the_first_factor": Mutant("packed::test_linear", packed=SharesTheFirstFactor),
    "takes_the_middle_for_zeros": Mutant("packed::test_linear", packed=TakesTheMiddleForZeros),
    "rounds_what_it_says_it_does_not": Mutant(
        "packed::test_linear", packed=RoundsWhatItSaysItDoesNot
    ),
    "scales_after_the_sum": Mutant(
        "packed::test_weights_that_are_rounded_to_bfloat16_have_the_bits_of_those_unpacked_to_it",
        packed=ScalesAfterTheSum,
        codes=True,
    ),
    "swaps_the_packed_rows": Mutant("packed::test_linear", packed=SwapsThePackedRows),
    "packs_late": Mutant("packed::test_linear", packed=PacksLate),
    "takes_the_first_for_all": Mutant(
        "packed::test_a_weight_may_be_of_several_formats", packed=TakesTheFirstForAll
    ),
    "rounds_whole_rows": Mutant(
        "packed::test_scales_may_be_of_any_sign_and_size", packed=RoundsWholeRows
    ),
    "hides_what_is_not_finite": Mutant(
        "packed::test_what_is_not_finite_stays_in_its_row", packed=HidesWhatIsNotFinite
    ),
    "forgets_the_last_block": Mutant("packed::test_linear", packed=ForgetsTheLastBlock),
    "swaps_packed_gate_and_up": Mutant("packed::test_gated_linear", packed=SwapsPackedGateAndUp),
    "gathers_the_next_row": Mutant("packed::test_rows_are_exact", packed=GathersTheNextRow),
    "rounds_gathered_rows": Mutant("packed::test_rows_are_exact", packed=RoundsGatheredRows),
    "takes_twice_the_memory": Mutant(
        "packed::test_a_packed_matrix_is_about_as_large_as_before", packed=TakesTwiceTheMemory
    ),
}
