"""Blocks of GGUF files keep every weight's bits, as ggml's own dequantiser has them."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from kvrt.model.packed.ggml import TYPES, to_plain
from kvrt.spi.plain import finite_rows, unpack
from kvrt.testing import matrices

FLOATS_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
    "IQ4_XS": (0,), "TQ2_0": (64,), "MXFP4": (), "NVFP4": (),
}  # fmt: skip
"""Where a block has numbers of float16."""

EXTREME = np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.0, 65504.0, -65504.0], np.float16)


def random_blocks(name: str, count: int, numbers: np.ndarray | None = None) -> np.ndarray:
    """Blocks of any codes, whose scales are of `numbers`, or random and of the usual size."""
    rng = np.random.default_rng(len(name) * count)
    blocks = rng.integers(0, 256, (count, TYPES[name].nbytes), dtype=np.uint8)
    for at in FLOATS_AT[name]:
        scales = rng.uniform(-0.1, 0.1, count) if numbers is None else rng.choice(numbers, count)
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8).reshape(count, 2)
    if name == "NVFP4":  # unsigned, though in E4M3's byte
        blocks[:, :4] &= 127
    if name == "MXFP4":  # 2^127 times 12 is too large
        blocks[:, 0] %= 250
    return blocks


@pytest.mark.parametrize("numbers", [None, EXTREME], ids=["usual", "extreme"])
@pytest.mark.parametrize("name", TYPES)
def test_values_are_those_of_the_reference_bit_for_bit(
    name: str, numbers: np.ndarray | None
) -> None:
    kind, width, rows = TYPES[name], 3 * 256, 50
    blocks = random_blocks(name, rows * width // TYPES[name].elements, numbers)
    with np.errstate(all="ignore"):
        want = quants.dequantize(blocks.reshape(rows, -1), GGMLQuantizationType[name])
    plain = to_plain(kind, torch.from_numpy(blocks.reshape(-1)), width)
    got = unpack(kind.format, plain, width)
    assert torch.equal(got.view(torch.int32), torch.from_numpy(want).view(torch.int32))


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_as_small_as_they_were(name: str) -> None:
    """They are filled up to whole words only: up to 3 bytes for each array."""
    kind = TYPES[name]
    for width in range(256, 4096, 256):
        in_file = width // kind.elements * kind.nbytes
        assert in_file <= kind.format.row_bytes(width) <= in_file + 5 * 3
    assert kind.format.fits(kind.elements)
    assert not kind.format.fits(kind.elements + 8)


@pytest.mark.parametrize("name", TYPES)
def test_plain_rows_read_as_the_contract_says(name: str) -> None:
    kind, width = TYPES[name], 512
    blocks = random_blocks(name, 3 * width // kind.elements)
    plain = to_plain(kind, torch.from_numpy(blocks.reshape(-1)), width)
    want = matrices.values(kind.format, plain, width)
    assert torch.equal(unpack(kind.format, plain, width), want)


@pytest.mark.parametrize("name", [name for name in TYPES if FLOATS_AT[name]])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_row_whose_scale_is_no_number_is_noticed(name: str, odd: float) -> None:
    kind, width = TYPES[name], 512
    for at in FLOATS_AT[name]:
        blocks = random_blocks(name, 4 * width // kind.elements)
        damaged = 2 * width // kind.elements + 1
        blocks[damaged, at : at + 2] = np.array([odd], np.float16).view(np.uint8)
        plain = to_plain(kind, torch.from_numpy(blocks.reshape(-1)), width)
        assert finite_rows(kind.format, plain, width).tolist() == [True, True, False, True]


def test_a_product_that_is_too_large_is_noticed() -> None:
    kind, width = TYPES["MXFP4"], 64
    blocks = random_blocks("MXFP4", 2 * width // kind.elements)
    blocks[1, 0] = 255
    plain = to_plain(kind, torch.from_numpy(blocks.reshape(-1)), width)
    assert finite_rows(kind.format, plain, width).tolist() == [False, True]
