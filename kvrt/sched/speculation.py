"""Which drafts go into a step: after all else is planned, with what tokens and pages are left."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvrt.drafting.cost import StepCost
from kvrt.drafting.drafter import Drafter
from kvrt.drafting.gain import Gain
from kvrt.drafting.lookup import PromptLookup
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.seq import Seq
from kvrt.sched.plan import Limits, Row, StepPlan

MARGIN = 1.5
"""A draft must promise so much more than it costs: chances and costs are estimates."""
LEAST = 0.15
"""Drafts less likely than this are not made, however little they cost."""

HORIZON = 64
"""A sequence is expected to go on for so many tokens, unless it must end before."""


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """Since the runtime was made.

    Args:
        drafted_tokens: tokens that were guessed, and computed for it.
        accepted_tokens: how many of them came true.
    """

    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Speculation:
    """Drafts for all sequences that want them. Belongs to the engine's thread.

    `drafted` and `accepted` count tokens: those verified, and those that came true.

    Args:
        trees: whether the device computes branches.
        ratio: of the size of a model that drafts to that of the model that is asked; None: there
            is none.
    """

    def __init__(self, *, trees: bool, ratio: float | None = None) -> None:
        self.cost = StepCost()
        self.gain = None if ratio is None else Gain(self.cost, ratio)
        self.lag: Callable[[Seq], int] = lambda seq: len(seq.tokens)
        """Tokens of a sequence that the model that drafts has to compute before it can guess."""
        self.drafted = self.accepted = 0
        self.odds: dict[Seq, list[float]] = {}
        """What a model that drafts thinks of the drafts that are to be verified."""
        self._trees = trees

    @staticmethod
    def drafter(limit: int, forced: int = 0) -> Drafter | None:
        """For a sequence that wants up to `limit` tokens drafted in a step, and where a constraint
        leaves no choice, up to `forced`."""
        if not limit and not forced:
            return None
        return Drafter(PromptLookup() if limit else None, max(limit, forced))

    def extend(self, plan: StepPlan, limits: Limits) -> StepPlan:
        """The plan, with drafts behind the rows that decode.

        Pages for them are taken from the free ones only: nothing is evicted and nobody is preempted
        for a guess. What they took comes back when the step ends.
        """
        plan = self._with_rooms(plan, limits)
        guessing = {
            index: drafter
            for index, row in enumerate(plan.rows)
            if (drafter := row.seq.drafter) is not None and drafter.guess.branches
        }
        if not guessing or plan.preempted or plan.stuck:
            return plan
        budget = limits.max_batch_tokens - sum(row.count for row in plan.rows)
        worth = self._worth(plan.rows)
        rows = list(plan.rows)
        change = plan.change
        for index, drafter in guessing.items():
            row = rows[index]
            if not (row.samples and row.count == 1 and row.seq.width == 1):
                continue
            room = min(budget, row.seq.max_len - len(row.seq.tokens) - 1)
            drafts = drafter.drafts(room, worth, trees=self._trees)
            if not drafts:
                continue
            grown = change.table.grow({row.seq.id: len(drafts)}, {row.seq.id: row.start})
            if isinstance(grown, Shortage):
                continue
            change = change.then(grown)
            rows[index] = replace(row, count=row.count + len(drafts), drafts=drafts)
            budget -= len(drafts)
        return replace(plan, rows=tuple(rows), change=change)

    def _with_rooms(self, plan: StepPlan, limits: Limits) -> StepPlan:
        """The plan, with pages for drafts of a model where it pays to ask that; likewise of free
        ones only."""
        gain = self.gain
        if gain is None or plan.preempted or plan.stuck:
            return plan
        wanted = [row for row in plan.rows if self._may_guess(row)]
        if not wanted:
            return plan
        tokens = sum(row.count for row in plan.rows)
        course = gain.course(tokens, sum(row.samples for row in plan.rows))
        lags = {row.seq: self.lag(row.seq) for row in wanted}
        wanted.sort(key=lambda row: lags[row.seq])
        late = [
            _spread(gain.reading_seconds(lag), row) if (lag := lags[row.seq]) > 1 else 0.0
            for row in wanted
        ]
        late = [*itertools.accumulate(late)]  # of so many

        def pays() -> bool:
            return course.pays([1.0] * len(wanted), late[len(wanted) - 1])

        while not (paying := pays()) and len(wanted) > 1:
            wanted.pop()
        if not gain.tries(paying):
            return plan
        rooms: dict[Seq, int] = {}
        change, budget = plan.change, limits.max_batch_tokens - tokens
        for row in wanted:
            seq = row.seq
            room = min(seq.guesses, budget, seq.max_len - len(seq.tokens) - 1)
            if room < 1:
                continue
            grown = change.table.grow({seq.id: room}, {seq.id: row.start})
            if not isinstance(grown, Shortage):
                change, rooms[seq] = change.then(grown), room
                budget -= room
        return replace(plan, change=change, rooms=rooms)

    @staticmethod
    def _may_guess(row: Row) -> bool:
        seq = row.seq
        forced = seq.drafter is not None and bool(seq.drafter.guess.branches)
        return seq.guesses > 0 and row.samples and row.count == 1 and seq.width == 1 and not forced

    def hopes(self, rows: Sequence[Row]) -> bool:
        """Whether some of these may have drafts in the next step, which then cannot be planned yet.

        It goes by the last guess: the next one depends on a token that is not known.
        """
        if self.gain is not None and any(row.seq.guesses for row in rows):
            return True
        worth = self._worth(rows)
        return any(
            row.seq.drafter is not None
            and bool(row.seq.drafter.drafts(1, worth, trees=self._trees))
            for row in rows
        )

    def verified(self, seq: Seq, drafted: int, accepted: int) -> None:
        """Of a sequence's drafts so many have come true."""
        self.drafted += drafted
        if self.gain is not None and (odds := self.odds.pop(seq, None)):
            self.gain.learn(odds, accepted)

    @property
    def stats(self) -> SpeculationStats:
        return SpeculationStats(self.drafted, self.accepted)

    def _worth(self, rows: Sequence[Row]) -> float:
        """The probability from which on a draft is made."""
        return max(LEAST, MARGIN * self.cost.worth(sum(row.samples for row in rows)))


def _spread(seconds: float, row: Row) -> float:
    """What is spent once, over the tokens that a sequence may still say."""
    return seconds / max(1, min(HORIZON, row.seq.max_len - len(row.seq.tokens)))


def parents_of(rows: Sequence[Row]) -> list[int] | None:
    """`kvrt.spi.AttentionBatch.parents` of a batch; None if no drafts branch."""
    if not any(row.drafts.branches for row in rows):
        return None
    parents: list[int] = []
    for row in rows:
        own = row.count - len(row.drafts)
        parents += range(-1, own - 1)
        parents += [own + parent for parent in row.drafts.parents]
    return parents
