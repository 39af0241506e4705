"""The plain form of packed weights, written and read, against its definition read byte by byte."""

from collections.abc import Iterator

import pytest
import torch

from kvrt.spi import WeightFormat
from kvrt.spi.matrices import Offset, Scale, TwoLevel
from kvrt.spi.plain import finite_rows, plain_rows, unpack
from kvrt.testing import matrices

SCALES: tuple[Scale, ...] = (
    "float32",
    "float16",
    "e8m0",
    "e4m3",
    TwoLevel(5, 16, 96),
    TwoLevel(7, 0, 48),
)
OFFSETS: tuple[Offset, ...] = ("none", "zeros", "float16", TwoLevel(3, 1, 96))


def formats() -> Iterator[WeightFormat]:
    for bits in range(1, 9):
        for scale in SCALES:
            for offset in OFFSETS:
                zero = 3 if offset == "none" else 0
                yield WeightFormat("mine", bits, 24, scale, zero, offset)
    yield WeightFormat("row", 8, 0, "float32", 128)
    yield WeightFormat("table", 3, 16, "float16", table=(-128, -9, -1, 0, 1, 2, 50, 127))
    yield WeightFormat("fp8", 8, 32, "float32", codes="e4m3")


def random_numbers(kind: Scale | Offset, rows: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind in ("float16", "float32"):
        return torch.randn(rows, count, generator=generator).to(getattr(torch, str(kind)))
    top = 1 << kind.bits if isinstance(kind, TwoLevel) else 120
    return torch.randint(top, (rows, count), generator=generator).byte()


def random_rows(format: WeightFormat, rows: int, width: int) -> torch.Tensor:
    groups = width // (format.group or width)
    generator = torch.Generator().manual_seed(width)
    # of E4M3, those without the two that are no numbers
    top = 127 if format.codes == "e4m3" else 1 << format.bits
    parts = {}
    for name, kind, seed in (("scale", format.scale, 1), ("offset", format.offset, 2)):
        if kind != "none":
            parts[f"{name}s"] = random_numbers(kind, rows, groups, seed)
        if isinstance(kind, TwoLevel):
            factors = random_numbers("float16", rows, width // kind.block, seed + 2)
            parts[f"{name}_factors"] = factors
    codes = torch.randint(top, (rows, width), generator=generator).byte()
    return plain_rows(format, codes, **parts)


@pytest.mark.parametrize("format", list(formats()), ids=repr)
def test_values_are_what_the_contract_says(format: WeightFormat) -> None:
    for width in (96, 288):
        plain = random_rows(format, 3, width)
        assert plain.shape == (3, format.row_bytes(width))
        want = matrices.values(format, plain, width)
        assert torch.equal(unpack(format, plain, width), want)
        assert finite_rows(format, plain, width).all()


def test_rows_may_be_cut_and_put_in_another_order() -> None:
    format = WeightFormat("mine", 5, 32, TwoLevel(6), offset=TwoLevel(6))
    plain = random_rows(format, 8, 512)
    whole, order = unpack(format, plain, 512), [5, 1, 1, 7]
    assert torch.equal(unpack(format, plain[order], 512), whole[order])
    assert torch.equal(unpack(format, plain[2:6], 512), whole[2:6])


def test_a_width_fits_if_it_consists_of_whole_groups_and_blocks() -> None:
    format = WeightFormat("mine", 4, 32, "float16", offset=TwoLevel(6, 0, 128))
    assert [width for width in range(-128, 400) if format.fits(width)] == [128, 256, 384]
    assert WeightFormat("row", 4, 0, "float16").fits(7)


@pytest.mark.parametrize("format", [format for format in formats() if format.codes == "e4m3"])
def test_codes_that_are_no_numbers_are_noticed(format: WeightFormat) -> None:
    codes = torch.zeros(3, 64, dtype=torch.uint8)
    codes[1, 40] = 0xFF
    plain = plain_rows(format, codes, torch.ones(3, 2))
    assert finite_rows(format, plain, 64).tolist() == [True, False, True]
