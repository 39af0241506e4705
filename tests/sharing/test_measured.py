"""`ci/sharing table`, with little to do: what it finds holds, whatever else the machine does."""

import pytest

from tests.bench.sharing import swap, table
from tests.bench.sharing.table import Finding


def check(findings: list[Finding]) -> None:
    """What has to do with time is for a quiet machine."""
    timed = ("Jain", "p99", "kill", "weights of 3 and 1: held", "of the rest")
    wrong = [
        found
        for found in findings
        if not found.good and not any(word in found.what for word in timed)
    ]
    assert not wrong
    assert findings


def test_two_engines_fail_no_request_and_hold_no_more_than_is_leased() -> None:
    check([*table.alike(2, requests=12)])


@pytest.mark.extra
def test_tenants_are_given_what_they_are_promised() -> None:
    check([*table.findings(quick=True)])


@pytest.mark.extra
def test_models_in_turn_lose_no_request_and_leave_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", "")  # so that it is put back
    lines = swap.measured().splitlines()[2:]
    assert len(lines) == 2
    for line in lines:
        *_, left, failed, _ = (cell.strip() for cell in line.split("|"))
        assert float(left.removesuffix(" MiB")) < 4
        assert failed == "0 of 9"


def test_what_has_the_same_share_is_fair_and_what_has_all_is_not() -> None:
    assert table.jain([3, 3, 3]) == pytest.approx(1)
    assert table.jain([1, 0, 0]) == pytest.approx(1 / 3)
