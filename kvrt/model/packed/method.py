"""What a way to keep a quantised matrix is; `kvrt.model.packed.methods` has them."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kvrt.spi import WeightFormat
from kvrt.spi.plain import plain_rows
from kvrt.spi.plain import values_of as plain_values


class Wanted(NamedTuple):
    """A tensor that a matrix is kept as: what it may be, and whether it may be missing.

    Args:
        dtypes: those that it may have.
        shapes: likewise; none: any.
    """

    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    optional: bool = False


class Held(NamedTuple):
    """What the tensors of a matrix hold.

    Args:
        codes: uint8 [out, in].
        scales: float [out, groups].
        zeros: uint8 [out, groups]; None: those of the format.
        group_of: int64 [in], the group of each column; None: they are in order.
        numbers: float32, what each code means; None: what the format says.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    group_of: Tensor | None = None
    numbers: Tensor | None = None


class Unreadable(Exception):
    """A tensor of a matrix, by the end of its name, holds what it must not.

    Args:
        end: of its name.
        reason: ends the sentence that begins with the tensor.
    """

    def __init__(self, end: str, reason: str) -> None:
        super().__init__(f"{end}: {reason}")
        self.end, self.reason = end, reason


class Method(Protocol):
    """A way to keep a matrix."""

    @property
    def stays(self) -> bool:
        """Whether its format holds it without loss, if groups divide a row; else it is unpacked."""

    @property
    def ordered(self) -> bool:
        """Whether columns may be in another order than that of their groups."""

    @property
    def first(self) -> str:
        """The end of the name of the tensor that has the codes."""

    @property
    def scales(self) -> str:
        """The end of the name of the tensor that has the scales."""

    def wanted(self, out: int, width: int) -> Mapping[str, Wanted]:
        """The tensors of a matrix, by the ends of their names."""

    def format(self, scales: str) -> WeightFormat:
        """Of what it is made: codes of how many bits, in which groups, scales being of a dtype."""

    def read(self, tensors: Mapping[str, Tensor]) -> Held:
        """What the tensors hold, by the ends of their names.

        Raises:
            Unreadable: one of them contradicts another.
        """


def plain_of(format: WeightFormat, held: Held) -> Tensor:
    """The plain form of what is held, whose columns are in the order of their groups."""
    return plain_rows(format, held.codes, held.scales, offsets=held.zeros)


def values_of(format: WeightFormat, held: Held) -> Tensor:
    """The values of what is held, columns being in any order, or groups not whole: [out, in]."""
    if format.table:
        return plain_values(format, held.codes, held.scales)
    width = held.codes.shape[1]
    group_of = held.group_of
    if group_of is None:
        group_of = torch.arange(width) // (format.group or width)
    if held.numbers is not None:
        numbers = held.numbers[held.codes.int()]
    elif format.codes == "e4m3":
        numbers = held.codes.view(torch.float8_e4m3fn).float()
    else:
        zeros = format.zero if held.zeros is None else held.zeros.float()[:, group_of]
        numbers = held.codes.float() - zeros
    return numbers * held.scales.float()[:, group_of]
