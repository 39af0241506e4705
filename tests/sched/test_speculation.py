"""Drafts: where they come from, how many are worth it, and what a step does with them."""

import random
from collections.abc import Sequence

import pytest

from kvrt.drafting.cost import StepCost
from kvrt.drafting.drafter import Drafter
from kvrt.drafting.drafts import Drafts
from kvrt.drafting.gain import Gain
from kvrt.drafting.lookup import Guess, PromptLookup
from kvrt.kv.seq import Seq
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits, Row, StepPlan
from kvrt.sched.speculation import Speculation, parents_of

from .test_batching import Clock

TREE = Drafts.of([(5, 6, 7), (8, 9)])


# --- trees ---------------------------------------------------------------------------------------


def test_branches_become_a_tree() -> None:
    assert Drafts((5, 6, 7, 8, 9), (-1, 0, 1, -1, 3)) == TREE
    assert TREE.branches
    assert not Drafts.of([(5, 6, 7)]).branches
    assert not Drafts().branches
    assert [TREE.line(node) for node in range(5)] == [[5], [5, 6], [5, 6, 7], [8], [8, 9]]


@pytest.mark.parametrize(
    ("follows", "path"),
    [
        ((5, 6, 7, 1, 1, 1), [0, 1, 2]),
        ((5, 6, 9, 7, 1, 1), [0, 1]),
        ((8, 6, 7, 1, 9, 1), [3, 4]),
        ((8, 6, 7, 1, 5, 9), [3]),
        ((9, 6, 7, 1, 9, 1), []),
    ],
)
def test_the_path_goes_on_while_what_is_drawn_was_guessed(
    follows: Sequence[int], path: list[int]
) -> None:
    assert TREE.path(lambda node: follows[node + 1]) == path


# --- prompt lookup -------------------------------------------------------------------------------


def guess(tokens: list[int], limit: int = 4) -> Guess:
    return PromptLookup().propose(tokens, limit)


def test_what_followed_the_same_tokens_before_is_proposed() -> None:
    assert guess([1, 2, 3, 4, 5, 6, 9, 1, 2]) == Guess(((3, 4, 5, 6),), 2)
    assert guess([9, 1, 2, 3, 4, 5, 6, 9, 1, 2]) == Guess(((3, 4, 5, 6),), 3)


def test_tokens_that_have_not_stood_side_by_side_before_give_no_guess() -> None:
    assert guess([1, 2, 3, 4, 2]) == guess([7]) == guess([1, 2]) == Guess()


def test_the_place_that_agrees_longest_comes_first_and_another_is_a_branch() -> None:
    tokens = [7, 1, 2, 3, 5, 0, 1, 2, 4, 6, 0, 7, 1, 2]
    assert guess(tokens, 2) == Guess(((3, 5), (4, 6)), 3)


def test_of_equal_places_the_latest_counts() -> None:
    assert guess([1, 2, 3, 0, 1, 2, 4, 9, 1, 2], 1) == Guess(((4,), (3,)), 2)
    assert guess([1, 2, 3, 0, 1, 2, 3, 9, 1, 2], 2) == Guess(((3, 9),), 2)


def test_a_period_goes_on_beyond_the_end_of_the_text() -> None:
    assert guess([1, 2, 3, 1, 2, 3, 1, 2], 8).branches[0] == (3, 1, 2, 3, 1, 2, 3, 1)
    assert guess([4, 4, 4], 5).branches[0] == (4, 4, 4, 4, 4)


def test_a_text_that_grows_is_looked_up_as_if_it_had_come_at_once() -> None:
    choose = random.Random(1)
    growing, tokens = PromptLookup(), [1]
    for _ in range(400):
        tokens += [choose.randrange(6) for _ in range(choose.randint(1, 4))]
        assert growing.propose(tokens, 6) == guess(tokens, 6)


def agreeing(tokens: list[int], place: int) -> int:
    """How many of the eight tokens before a place are those at the end."""
    count = 0
    while count < min(8, place) and tokens[place - count - 1] == tokens[-count - 1]:
        count += 1
    return count


def continued(tokens: list[int], place: int, limit: int) -> tuple[int, ...]:
    line = list(tokens)
    for at in range(place, place + limit):
        line.append(line[at])
    return tuple(line[len(tokens) :])


@pytest.mark.parametrize("letters", [2, 3, 5])
def test_a_guess_is_what_looking_at_the_latest_places_finds(letters: int) -> None:
    """Eight of them, each where the last two tokens stood before."""
    choose, tokens, branched = random.Random(letters), [0], 0
    for _ in range(300):
        tokens.append(choose.randrange(letters))
        ends = [at for at in range(2, len(tokens)) if tokens[at - 2 : at] == tokens[-2:]]
        match = {at: agreeing(tokens, at) for at in reversed(ends[-8:])}
        found = guess(tokens, 5)
        if not match:
            assert found == Guess()
            continue
        best = max(match, key=lambda at: match[at])  # the latest of equal ones
        assert (found.branches[0], found.match) == (continued(tokens, best, 5), match[best])
        others = {at: match[at] for at in match if tokens[at] != tokens[best]}
        second = [at for at in others if others[at] == max(others.values())]
        assert set(found.branches[1:]) <= {continued(tokens, at, 5) for at in second}
        assert len(found.branches) == 1 + bool(second)
        branched += bool(second)
    assert branched > 30


def test_a_long_prompt_is_indexed_in_pieces() -> None:
    tokens = [*range(10_000), 7, 8]
    lookup = PromptLookup()
    proposed = [lookup.propose(tokens, 2) for _ in range(4)]
    assert proposed == [Guess(), Guess(), Guess(((9, 10),), 2), Guess(((9, 10),), 2)]


# --- how many ------------------------------------------------------------------------------------


class Fixed:
    """Always guesses the same."""

    def __init__(self, *branches: tuple[int, ...], match: int = 2) -> None:
        self.guess = Guess(branches, match)

    def propose(self, tokens: Sequence[int], limit: int) -> Guess:
        return self.guess


def grown(drafter: Drafter, *came: int, times: int = 40) -> Drafter:
    tokens = [0]
    drafter.observe(tokens)
    for _ in range(times):
        tokens += came
        drafter.observe(tokens)
    return drafter


def test_guesses_that_come_true_grow_and_those_that_do_not_end() -> None:
    line = (1, 2, 3, 4, 5, 6, 7, 8)
    fresh = Drafter(Fixed(line), 8)
    fresh.observe([0])
    start = len(fresh.drafts(8, 0.08, trees=True))
    assert 0 < start < 8
    assert len(grown(Drafter(Fixed(line), 8), *line).drafts(8, 0.2, trees=True)) == 8
    assert len(grown(Drafter(Fixed(line), 8), 9).drafts(8, 0.2, trees=True)) == 0
    half = grown(grown(Drafter(Fixed(line), 8), 9), *line)
    assert len(half.drafts(8, 0.2, trees=True)) == 8, "also of those that were not drafted"


@pytest.mark.parametrize("match", [2, 4, 8])
def test_as_many_are_drafted_as_are_likely_enough_by_what_came_true(match: int) -> None:
    """A mean of the latest, for each number of tokens that agree before a guess."""
    line, choose = (1, 2, 3, 4, 5, 6), random.Random(match)
    drafter, tokens = Drafter(Fixed(line, match=match), 8), [0]
    true = [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6]
    drafter.observe(tokens)
    lengths = set()
    for _ in range(200):
        hits = choose.choice([0, 1, 2, 6])
        came = [*line[:hits], 9][:6]
        tokens += came
        drafter.observe(tokens)
        for at, token in enumerate(came):
            kind = min(match - 2 + at, 6)
            true[kind] += 0.15 * ((token == line[at]) - true[kind])
        chances = [true[min(match - 2 + at, 6)] for at in range(6)]
        together = [1.0]
        for chance in chances:
            together.append(together[-1] * chance)
        for count in range(1, 7):  # worth exactly what the last of so many is
            drafts = drafter.drafts(8, together[count], trees=False)
            assert drafts.tokens == line[:count]
            fewer = drafter.drafts(8, (together[count - 1] + together[count]) / 2, trees=False)
            assert fewer.tokens == line[: count - 1]
        lengths.add(len(drafter.drafts(8, 0.25, trees=False).tokens))
    assert len(lengths) > 2


def test_a_second_branch_is_drafted_if_it_often_was_the_right_one() -> None:
    drafter = grown(Drafter(Fixed((1, 2), (3, 4)), 8), 3)
    tokens = [0] * 100
    for _ in range(3):
        tokens.append(1)
        drafter.observe(tokens)
    assert drafter.drafts(8, 0.1, trees=True).branches
    assert not drafter.drafts(8, 0.1, trees=False).branches


@pytest.mark.parametrize(
    ("came", "drafted"),
    [
        ([(1, 5), (9,)], False),  # its second token, where the first one was the other branch's
        ([(1, 9), (4,)], True),
        ([(4,), (9,)], True),
        ([(9,), (1,)], False),
    ],
    ids=str,
)
def test_a_second_branch_was_right_if_its_first_token_came(
    came: list[tuple[int, ...]], drafted: bool
) -> None:
    drafter, tokens = Drafter(Fixed((1, 2, 3), (4, 5, 6)), 8), [0]
    drafter.observe(tokens)
    for _ in range(40):
        for each in came:
            tokens += each
            drafter.observe(tokens)
    tokens += [1]  # whatever was last, the first branch is drafted
    drafter.observe(tokens)
    assert drafter.drafts(8, 0.15, trees=True).branches == drafted


class Seldom:
    """Has a guess only when told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.looks = 0
        self.guess = Guess()

    def propose(self, tokens: Sequence[int], limit: int) -> Guess:
        self.looks += 1
        return self.guess


def looks(drafter: Drafter, proposer: Seldom, tokens: list[int], came: int, count: int) -> int:
    """How often the proposer is asked while `count` tokens come."""
    before = proposer.looks
    for _ in range(count):
        tokens.append(came)
        drafter.observe(tokens)
    return proposer.looks - before


def test_after_looking_in_vain_it_looks_seldom_until_a_guess_comes_true() -> None:
    proposer, tokens = Seldom(), [0]
    drafter = Drafter(proposer, 8)
    looks(drafter, proposer, tokens, 9, 200)
    assert looks(drafter, proposer, tokens, 9, 80) <= 12
    proposer.guess = Guess(((1, 1, 1),), 2)
    looks(drafter, proposer, tokens, 9, 16)
    proposer.guess = Guess()
    looks(drafter, proposer, tokens, 9, 8)
    assert looks(drafter, proposer, tokens, 9, 80) <= 12, "no guess has come true"
    proposer.guess = Guess(((1, 1, 1),), 2)
    looks(drafter, proposer, tokens, 1, 16)
    proposer.guess = Guess()
    assert looks(drafter, proposer, tokens, 9, 8) > 4


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    drafter = grown(Drafter(Fixed((1, 2, 3), (4, 5, 6)), 4), 1, 2, 3)
    for room in range(-1, 8):
        assert len(drafter.drafts(room, 0.0, trees=True)) == max(0, min(room, 4))


def test_the_cost_of_a_token_is_learnt_from_steps_of_several_sizes() -> None:
    cost = StepCost()
    assert cost.worth(1) == pytest.approx(1 / 9)
    for _ in range(200):
        for tokens in (1, 4, 9):
            cost.observe(tokens, 0.010 + 0.0001 * tokens)
    assert cost.worth(1) < 0.03, "a step is bound by its weights"
    for _ in range(200):
        for tokens in (1, 4, 9):
            cost.observe(tokens, 0.001 * tokens)
    assert cost.worth(1) > 0.7, "each token costs as much as the first"


@pytest.mark.parametrize(("base", "each"), [(0.010, 0.001), (0.002, 0.0005)])
def test_a_token_pays_if_it_is_likelier_than_its_share_of_the_step(
    base: float, each: float
) -> None:
    cost = StepCost()
    assert [cost.worth(tokens) for tokens in (1, 8)] == [pytest.approx(1 / 9), 0.5]
    for _ in range(100):
        for tokens in (1, 4, 9, 16):
            cost.observe(tokens, base + each * tokens)
    for tokens in (1, 2, 6):
        share = each * tokens / (base + each * tokens)
        assert cost.worth(tokens) == pytest.approx(share, rel=0.05)


def test_a_step_that_was_disturbed_does_not_mislead() -> None:
    cost = StepCost()
    for number in range(200):
        tokens = 1 + number % 4
        cost.observe(tokens, 0.010 + 0.0001 * tokens + (number % 50 == 49))
    assert cost.worth(1) < 0.5


def test_what_was_measured_first_is_forgotten_if_it_was_disturbed() -> None:
    cost = StepCost()
    for tokens in (1, 2, 3):
        cost.observe(tokens, 0.500)
    cost.observe(1, 0.010)
    assert cost.seconds(1) == pytest.approx(0.010)
    for tokens in (64, 1, 64, 1):  # a shorter step is no faster one
        cost.observe(tokens, 0.010 + 0.002 * tokens)
    assert cost.seconds(64) > 2 * cost.seconds(1)


# --- in a step -----------------------------------------------------------------------------------


def decoding(clock: Clock, count: int, *branches: tuple[int, ...]) -> list[Seq]:
    """Sequences of 6 tokens that decode, and guess that these come next."""
    seqs = [clock.add(prompt=6, new=40) for _ in range(count)]
    for seq in seqs:
        seq.drafter = grown(Drafter(Fixed(*branches), 8), *branches[0])
    clock.tick()
    return seqs


def planned(clock: Clock) -> StepPlan:
    plan = plan_step(clock.table, clock.running, clock.waiting, clock.limits, clock.step)
    return Speculation(trees=True).extend(plan, clock.limits)


def test_drafts_stand_behind_the_last_token_and_have_their_slots() -> None:
    clock = Clock(20, Limits(64, 8))
    one, two = decoding(clock, 2, (1, 2, 3))
    plan = planned(clock)
    assert [(row.seq, row.count, row.drafts.tokens) for row in plan.rows] == [
        (one, 4, (1, 2, 3)),
        (two, 4, (1, 2, 3)),
    ]
    assert [plan.table.length(seq.id) for seq in (one, two)] == [10, 10]
    assert parents_of(plan.rows) is None, "lines need none"


def test_branches_give_the_batch_its_parents() -> None:
    clock = Clock(20, Limits(64, 8))
    seq = decoding(clock, 1, (1, 2), (3, 4))[0]
    row = Row(seq, 6, 5, samples=True, drafts=Drafts.of([(1, 2), (3, 4)]))
    assert parents_of([Row(seq, 0, 3, samples=False), row]) == [-1, 0, 1, -1, 0, 1, 0, 3]


def test_drafts_take_only_the_tokens_that_are_left() -> None:
    clock = Clock(20, Limits(12, 8))
    decoding(clock, 2, (1, 2, 3, 4, 5, 6, 7, 8))
    rows = planned(clock).rows
    assert [row.count for row in rows] == [9, 3]
    assert sum(row.count for row in rows) == 12


def test_drafts_never_reach_beyond_the_last_token_that_may_come() -> None:
    clock = Clock(20, Limits(64, 8))
    seq = decoding(clock, 1, (1, 2, 3))[0]
    for left, drafts in ((40, 3), (3, 2), (2, 1), (1, 0)):
        seq.max_len = len(seq.tokens) + left
        assert len(planned(clock).rows[0].drafts) == drafts


def test_nobody_loses_a_page_for_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences hold four of five pages, and the drafts of each would need one more."""
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    clock = Clock(3, Limits(64, 8))
    decoding(clock, 2, (1, 2, 3, 4))
    assert clock.table.free_pages == 1
    plan = planned(clock)
    assert not plan.preempted
    assert not plan.change.dropped
    assert [len(row.drafts) for row in plan.rows] == [4, 0]


@pytest.mark.parametrize("window", range(1, 10))
def test_pages_for_drafts_are_not_those_that_the_token_before_them_sees(window: int) -> None:
    clock = Clock(20, Limits(64, 8), windows=((window, 0),))
    decoding(clock, 1, (1, 2, 3, 4, 5))
    (group,) = clock.table.groups
    while clock.running:
        plan = planned(clock)
        for row in plan.rows:
            _, seen = group.kept(row.start)
            assert all(plan.table.pages(row.seq.id)[seen.start : seen.stop])
        clock.tick()


def test_a_prompt_is_not_followed_by_drafts() -> None:
    clock = Clock(20, Limits(4, 8))
    seq = clock.add(prompt=9, new=40)
    seq.drafter = grown(Drafter(Fixed((1, 2, 3)), 8), 1, 2, 3)
    assert [len(row.drafts) for row in planned(clock).rows] == [0]


def test_a_sequence_that_is_about_to_be_several_is_not_followed_by_drafts() -> None:
    for width, drafts in ((1, 3), (2, 0)):
        clock = Clock(20, Limits(9, 8))
        seq = clock.add(prompt=1, new=40)
        seq.width = width
        seq.drafter = grown(Drafter(Fixed((1, 2, 3)), 8), 1, 2, 3)
        assert [len(row.drafts) for row in planned(clock).rows] == [drafts]


def test_what_is_forced_goes_before_guesses_as_long_as_it_comes_true() -> None:
    drafter = Drafter(None, 4)
    drafter.observe([1], [7, 8, 9, 10, 11])
    assert drafter.drafts(8, 0.2, trees=True).tokens == (7, 8, 9, 10)
    tokens = [1]
    for _ in range(30):  # the model writes the same text with other tokens
        tokens.append(5)
        drafter.observe(tokens, [7, 8, 9])
    assert not drafter.drafts(8, 0.2, trees=True)
    drafter.observe(tokens)
    assert not drafter.drafts(8, 0.0, trees=True), "nothing is guessed from the text"


def test_whether_a_model_drafts_is_reckoned_in_as_many_parts_as_there_are_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def seconds(gain: Gain, tokens: int) -> float:
        nonlocal asked
        asked += 1
        return 1.0  # drafting never pays

    monkeypatch.setattr(Gain, "pass_seconds", seconds)
    clock = Clock(400, Limits(256, 64))
    for seq in decoding(clock, 32, (1, 2, 3)):
        seq.drafter, seq.guesses = None, 4
    speculation = Speculation(trees=True, ratio=0.25)
    for tokens in (16, 32):
        speculation.cost.observe(tokens, 0.001 * tokens)
    plan = plan_step(clock.table, clock.running, clock.waiting, clock.limits, clock.step)
    assert not speculation.extend(plan, clock.limits).rooms
    assert asked <= 3 * len(plan.rows) == 96
