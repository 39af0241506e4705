"""The kit is worth what it finds: each device with one fault must fail it."""

from collections.abc import Callable

import pytest

from kvrt.testing.mutants import MUTANTS

pytest_plugins = ["pytester"]

SOURCE = """
from kvrt import registry
from kvrt.testing.mutants import MUTANTS, MutantBackend
from kvrt.testing.mutants.mutant import Mutant
from kvrt.testing.packing import PackingBackend

bases = {name: registry.load(name) for name in ("cpu", "null")}
for name, mutant in MUTANTS.items():
    part = mutant.caught_by.partition("::")[0]
    on_cpu = mutant.codes or part in (
        "dense", "experts", "graphs", "latent", "low_rank", "recurrence", "trees"
    )
    base = "cpu" if on_cpu else "null"
    inner = bases[base]
    if part == "packed" and not on_cpu:
        inner = PackingBackend(name, inner)
    globals()[name] = MutantBackend(name, inner, mutant)
intact = MutantBackend("intact", bases["null"], Mutant("nobody"))
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


@pytest.mark.promise("P37")
def test_a_mutant_without_a_fault_passes(
    install: Callable[..., None], kit: Callable[..., pytest.RunResult]
) -> None:
    install(SOURCE, ["intact"])
    result = kit("--kvrt-backend", "intact")
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "says_twice_its_granularity",
            "less than a chunk is mapped at byte 0|must give .* aligned",
        ),
        ("says_half_its_granularity", "more than a chunk is mapped at byte 0"),
        ("cuts_offsets", "nothing is mapped at byte 4294967296"),
    ],
)
def test_what_would_end_the_process_is_said_before(
    name: str, says: str, install: Callable[..., None], kit: Callable[..., pytest.RunResult]
) -> None:
    """The run stops there, though nobody asked for ``-x``."""
    install(SOURCE, MUTANTS)
    result = kit("--kvrt-backend", name, parts=("attention", "memory"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.re_match_lines([f".*Error: .*({says})", ".*the tests behind it could crash"])
