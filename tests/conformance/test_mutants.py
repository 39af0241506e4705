"""The kit is worth what it finds: each device with one fault must fail it."""

from collections.abc import Callable

import pytest

from kvrt.testing.mutants import MUTANTS

pytest_plugins = ["pytester"]

SOURCE = """
from kvrt import registry
from kvrt.testing.mutants import MUTANTS, Mutant, MutantBackend

for name, mutant in MUTANTS.items():
    on_cpu = mutant.codes or mutant.caught_by in ("fused", "graphs", "trees")
    base = "cpu" if on_cpu else "null"
    globals()[name] = MutantBackend(name, registry.load(base), mutant)
intact = MutantBackend("intact", registry.load("null"), Mutant("nobody"))
"""


@pytest.mark.promise("P37")
@pytest.mark.parametrize("name", MUTANTS)
def test_the_kit_finds_the_fault(
    name: str,
    install: Callable[..., None],
    kit: Callable[..., pytest.RunResult],
) -> None:
    install(SOURCE, MUTANTS)
    result = kit("--kvrt-backend", name, "-x", parts=(MUTANTS[name].caught_by,))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["failed"] == 1


def test_a_mutant_without_a_fault_passes(
    install: Callable[..., None], kit: Callable[..., pytest.RunResult]
) -> None:
    install(SOURCE, ["intact"])
    result = kit("--kvrt-backend", "intact")
    assert result.ret == pytest.ExitCode.OK
