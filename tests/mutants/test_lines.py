"""Faults of one line are found by the tests that are there for them.

pytest -m extra tests/mutants      a quarter of an hour or more, on one core
"""

from pathlib import Path

import pytest

from .lines import DRAWN
from .run import ROOT, LineMutant, run_tests
from .survived import SURVIVED

MUTANTS = DRAWN | SURVIVED


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_line_of_a_mutant_is_there_once_and_so_are_its_tests(mutant: LineMutant) -> None:
    source = mutant.path.read_text()
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.path, "exec")
    for test in mutant.tests.split():
        assert (ROOT / "tests" / test.partition("::")[0]).exists()


@pytest.mark.extra
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS.values()}))
def test_without_a_mutant_its_tests_pass(tests: str, tmp_path: Path) -> None:
    assert run_tests(tests, None, tmp_path / "seen")


@pytest.mark.extra
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_is_found(mutant: LineMutant, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    assert not run_tests(mutant.tests, mutant, seen)
    assert seen.exists(), "the changed module was never imported"
