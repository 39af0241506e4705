"""Every kernel compiles for every architecture, within its limits. No GPU is needed."""

from pathlib import Path

import pytest

from tests.triton.cases import ALL, COMMON, Case
from tests.triton.compiled import TARGETS, Resources
from tests.triton.resources import Compiled, begin, compile_all, outdated, page, problems
from tests.triton.unset import unset

ROOT = Path(__file__).parents[2]
SOME = ("sm_90", "gfx942", "gfx1100")
"""One of each kind: the rest, and every tile, are compiled where the tables are made, and by
``-m extra``."""


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_all(SOME, COMMON, tmp_path_factory.mktemp("cache"))


def of(compiled: Compiled, arch: str, what: str) -> Resources:
    """The first kernel of a case of bfloat16 numbers and heads of 128."""
    return compiled[arch, Case(what)][0]


def test_the_common_kernels_fit_in_registers_and_shared_memory(common: Compiled) -> None:
    assert set(common) == {(a, c) for a in SOME for c in COMMON if c.runs_on(a)}
    assert all(common.values())
    assert not problems(common)


def test_attention_uses_matrix_instructions(common: Compiled) -> None:
    for arch in SOME:
        for what in ("decode", "prefill"):
            assert of(common, arch, what).matrix, f"{what} on {arch}"
    assert of(common, "sm_90", "prefill").matrix == {"wgmma": 24}


def test_keys_and_values_are_read_ahead_where_there_is_an_instruction_for_it(
    common: Compiled,
) -> None:
    """Shared memory for whole blocks of both: they lose it if their addresses look unaligned."""
    block = 64 * 128 * 2
    assert of(common, "sm_90", "decode").shared >= 2 * block
    assert of(common, "sm_90", "prefill").shared >= 4 * block


def test_a_row_of_packed_weights_is_rounded_before_its_offset_is_added(common: Compiled) -> None:
    """As `WeightFormat` says; a product with it is not."""
    q4_1 = Case("few tokens", weights="q4_1")
    for arch in SOME:
        assert not common[arch, q4_1][-1].fused
    assert all(common[arch, q4_1][0].fused for arch in ("sm_90", "gfx942"))


def test_code_that_reads_what_nothing_has_written_is_found() -> None:
    """As ptxas 12.8 made it: the address of the second product's operand is lost."""
    code = """
        /*0100*/                   ULDC.64 UR4, c[0x0][0x208] ;
        /*0110*/                   UMOV UR27, 0x40000040 ;
        /*0120*/                   HGMMA.64x32x16.F32 R88, R28, gdesc[UR24].tnspB, R88 ;
        /*0130*/                   UIADD3 UR30, UP0, UR4, UR5, URZ ;
    """
    assert unset(code) == ["HGMMA.64x32x16.F32 R88, R28, gdesc[UR24].tnspB, R88"]
    assert not unset(code.replace("/*0110*/", "/*0108*/ UMOV UR26, UR4 ; /*0110*/"))


@pytest.mark.extra
@pytest.mark.timeout(1800)
def test_every_kernel_fits_on_every_architecture(tmp_path: Path) -> None:
    compiled = compile_all(TARGETS, ALL, tmp_path)
    assert not problems(compiled)
    for arch in TARGETS:
        assert of(compiled, arch, "prefill").matrix, arch
    text = (ROOT / "docs/kernels.md").read_text()
    assert page(text, compiled) == text, "python -m tests.triton.resources docs/kernels.md"


def test_the_tables_are_of_these_sources() -> None:
    text = (ROOT / "docs/kernels.md").read_text()
    assert not outdated(text), "python -m tests.triton.resources docs/kernels.md"
    assert begin("tiles") in text
