"""Who is due what, of numbers alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.sharing.fair import Claim, allowance, fair_shares


def wanting(want: int, **terms: object) -> Claim:
    return Claim(0, want, **terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "due"),
    [
        ([wanting(100), wanting(100)], [50, 50]),
        ([wanting(100, weight=3), wanting(100)], [75, 25]),
        ([wanting(20), wanting(100), wanting(100)], [20, 40, 40]),
        ([wanting(100), wanting(30, guarantee=30)], [70, 30]),
        ([wanting(100), wanting(0, guarantee=30)], [70, 0]),
        ([wanting(100), wanting(0, guarantee=30, lends=True)], [100, 0]),
        ([wanting(100), wanting(100, guarantee=30)], [35, 65]),
        ([wanting(60, priority=1), wanting(100)], [60, 40]),
        ([wanting(60, priority=1), wanting(100, guarantee=50)], [50, 50]),
        ([Claim(80, 10), wanting(100)], [10, 90]),
        ([], []),
    ],
)
def test_guarantees_come_first_then_priorities_then_weights(
    claims: list[Claim], due: list[int]
) -> None:
    assert fair_shares(100, claims) == due


claims = st.builds(
    Claim,
    held=st.integers(0, 40),
    want=st.integers(0, 400),
    guarantee=st.integers(0, 25),
    lends=st.booleans(),
    weight=st.sampled_from([0.001, 0.5, 1.0, 3.0, 1000.0]),
    priority=st.integers(-1, 1),
)


@given(st.lists(claims, max_size=6))
def test_nobody_is_due_more_than_it_wants_and_all_together_no_more_than_there_is(
    claims: list[Claim],
) -> None:
    shares = fair_shares(200, claims)
    kept = sum(
        max(0, claim.guarantee - share)
        for claim, share in zip(claims, shares, strict=True)
        if not claim.lends
    )
    assert sum(shares) + kept <= 200
    for claim, share in zip(claims, shares, strict=True):
        assert min(claim.want, claim.guarantee) <= share <= claim.want
    short = any(share < claim.want for claim, share in zip(claims, shares, strict=True))
    assert not short or sum(shares) + kept >= 200 - len(claims), "nothing is left while some want"


@given(st.lists(claims, min_size=2, max_size=6))
def test_of_one_priority_whoever_is_short_has_as_much_for_its_weight_as_anybody(
    claims: list[Claim],
) -> None:
    shares = fair_shares(200, claims)

    def level(n: int) -> float:
        more = shares[n] - min(claims[n].want, claims[n].guarantee)
        return more / claims[n].weight

    for n, claim in enumerate(claims):
        if shares[n] < claim.want:
            for other, beside in enumerate(claims):
                if beside.priority == claim.priority:
                    slack = len(claims) * max(1 / claim.weight, 1 / beside.weight)
                    assert level(other) <= level(n) + slack
                elif beside.priority < claim.priority:
                    guaranteed = min(beside.want, beside.guarantee)
                    assert shares[other] <= guaranteed + len(claims)


@given(st.lists(claims, min_size=1, max_size=6))
def test_what_anybody_may_take_is_there(claims: list[Claim]) -> None:
    held = sum(claim.held for claim in claims)
    for n, me in enumerate(claims):
        allowed = allowance(250, me, claims[:n] + claims[n + 1 :])
        assert 0 <= allowed <= max(me.held, me.held + 250 - held)


@given(st.lists(claims, min_size=1, max_size=6))
def test_those_who_have_too_much_give_back_what_others_miss_and_no_more(
    claims: list[Claim],
) -> None:
    def others(n: int) -> list[Claim]:
        return claims[:n] + claims[n + 1 :]

    total = max(200, sum(claim.held for claim in claims))
    back = [me.held - allowance(total, me, others(n)) for n, me in enumerate(claims)]
    given_back = sum(nbytes for nbytes in back if nbytes > 0)
    shares = fair_shares(total, claims)
    owed = sum(claim.owed(share) for claim, share in zip(claims, shares, strict=True))
    missing = max(0, owed - (total - sum(claim.held for claim in claims)))
    over = sum(max(0, claim.held - share) for claim, share in zip(claims, shares, strict=True))
    rounding = len(claims) ** 2
    assert abs(given_back - min(missing, over)) <= rounding
    for me, nbytes, share in zip(claims, back, shares, strict=True):
        if nbytes > 0:
            assert me.held - nbytes >= share - rounding, "nobody is brought below what it is due"
