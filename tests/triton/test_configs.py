"""The table of tiles, and how an architecture finds its own."""

import itertools

import pytest
from kvrt_kernels.triton.configs import (
    ANY,
    CONFIGS,
    SIBLINGS,
    WIDE,
    WIDE_CHUNK,
    Config,
    config,
    formats_on,
)


@pytest.mark.parametrize(
    ("arch", "own"),
    [
        ("sm_90", "sm_90"),
        ("sm_90a", "sm_90"),
        ("sm_103", "sm_100"),
        ("gfx90a", "gfx90a"),
        ("gfx942:sramecc+:xnack-", "gfx942"),
        ("gfx1102", "gfx1100"),
    ],
)
def test_an_architecture_finds_its_entry_by_the_name_its_driver_gives(arch: str, own: str) -> None:
    assert config(arch) is CONFIGS[own]


@pytest.mark.parametrize("arch", ["sm_75", "sm_120", "gfx906", "none", ""])
def test_an_architecture_without_an_entry_gets_the_smallest_tiles(arch: str) -> None:
    assert config(arch) is ANY


def test_siblings_have_an_entry() -> None:
    assert set(SIBLINGS.values()) <= set(CONFIGS)
    assert not set(SIBLINGS) & set(CONFIGS)


@pytest.mark.parametrize("entry", CONFIGS.values(), ids=CONFIGS)
def test_every_head_size_and_width_has_a_tile_that_segments_consist_of(entry: Config) -> None:
    for tiles in (entry.decode, entry.prefill):
        assert {key for key in tiles if key[0] in (16, 32)} == set(
            itertools.product((16, 32), (64, 128, 256, WIDE))
        )
        for (_, head), tile in tiles.items():
            assert entry.segment % tile.block_n == 0
            assert tile.block_m >= 16, "a matrix instruction has 16 rows"
            assert not tile.chunk or (WIDE_CHUNK if head == WIDE else head) % tile.chunk == 0
            assert tile.chunk or head != WIDE


@pytest.mark.parametrize(
    "arch",
    ["sm_89", "sm_90", "sm_90a", "sm_100", "sm_120", "gfx942:sramecc+:xnack-", "gfx950", "gfx1201"],
)
def test_architectures_with_8_bit_floats_keep_them_in_pages(arch: str) -> None:
    assert formats_on(arch, ("float16",)) == ("float16", "int8", "fp8", "int4")


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "gfx90a", "gfx1100", "gfx1151", ""])
def test_the_others_do_not(arch: str) -> None:
    assert formats_on(arch, ("bfloat16",)) == ("bfloat16", "int8", "int4")
