"""Which of the sequences that wait start to run in a step."""

from collections.abc import Iterable, Sequence

from kvrt.kv.index.outside import Fetches
from kvrt.kv.index.reuse import Reuse
from kvrt.kv.seq import Seq
from kvrt.sched.computing import Computing
from kvrt.sched.pages import PlannedPages
from kvrt.sched.plan import Held, Limits, Row
from kvrt.sched.room import Hope, bytes_to_come


class Admission:
    """Admits sequences, one after the other, while tokens, places and pages are left.

    What has come of it are attributes, as those of `StepPlan`, and `pages`: the plan's pages, with
    those of who was admitted.

    Args:
        pages: of the plan so far.
        placed: sequences that have pages: they run, or wait for pages from outside the device.
        budget: tokens that are left of the step.
        hope: of more memory, for which a sequence may better wait.
    """

    def __init__(
        self,
        pages: PlannedPages,
        placed: Sequence[Seq],
        budget: int,
        limits: Limits,
        reuse: Reuse,
        hope: Hope,
    ) -> None:
        self.pages = pages
        self.rows: list[Row] = []
        self.admitted: dict[Seq, int] = {}
        self.fetches: dict[Seq, Fetches] = {}
        self.stuck: list[Seq] = []
        self.aside: list[Seq] = []
        self.awaiting: list[Seq] = []
        self.held: Held | None = None
        self.wanting: tuple[Seq, int] | None = None
        self._placed = placed
        self._budget = budget
        self._reuse = reuse
        self._hope = hope
        self._at_once = limits.max_batch_tokens
        self._spare = pages.room - sum(self._to_come(pages, seq) for seq in placed)
        self._apart = any(seq.apart for seq in placed)
        self._places = 0 if self._apart else limits.max_running - sum(seq.width for seq in placed)
        self._computing = Computing(reuse, placed, pages)

    def admit(self, waiting: Iterable[Seq]) -> None:
        """Admit those that come first, in this order; one that waits for memory is passed."""
        passed = False
        for seq in waiting:
            if self._hope.waits(seq):
                passed = True
            elif not self._admits(seq):
                break
        if passed and self.held is None:
            self.held = "memory"

    def _admits(self, seq: Seq) -> bool:
        """Admit a sequence, unless another just computes its next page. False: none is any more."""
        alone = not self._placed and not self.admitted
        apart = self._apart or seq.apart
        self.held = _held(self._budget, self._spare, self._places - 1, alone=alone, apart=apart)
        if self.held is not None:
            if self.held == "memory":
                self.wanting = seq, self._to_come(self.pages, seq) - self._spare
            return False  # so it is for all that come after it
        if self._computing.awaited(seq, self.pages):
            self.awaiting.append(seq)
            return True
        named, cached = len(seq.names), self._reuse.match(seq, self.pages.dropped)
        if len(seq.names) > named and self._computing.awaited(seq, self.pages):
            self.awaiting.append(seq)
            return True
        trial = self.pages.copy()
        matched = len(cached[0]) if cached else 0
        if matched:
            trial.do(trial.table.attach(seq.id, cached))
        self._spare -= self.pages.room - trial.room + self._to_come(trial, seq)
        self._places = 0 if seq.apart else self._places - seq.width
        self.held = _held(self._budget, self._spare, self._places, alone=alone)
        if self.held is not None:
            self.wanting = (seq, -self._spare) if self.held == "memory" else None
            return False
        outside = self._reuse.stored(seq, matched, self.pages.dropped)
        return self._starts_later(seq, trial, outside) or self._starts_now(seq, trial, alone=alone)

    def _starts_later(self, seq: Seq, trial: PlannedPages, outside: Fetches | None) -> bool:
        """Whether it can start once pages have come from outside the device.

        Args:
            trial: it begins with cached pages.
            outside: those that could come; None: it is not worth it.
        """
        pages = self.pages.copy()
        if outside is None or not pages.fetch(seq.id, outside):
            return False
        self.fetches[seq] = outside
        self._begin(seq, trial.table.length(seq.id), pages)
        return True

    def _starts_now(self, seq: Seq, pages: PlannedPages, *, alone: bool) -> bool:
        """Whether it can start in this step.

        Args:
            pages: it begins with cached ones.
            alone: nothing else runs or was admitted.
        """
        start = pages.table.length(seq.id)
        count = seq.uncut(start, min(len(seq.tokens) - start, self._budget))
        if not count:
            return False  # a step of its own is large enough
        if not pages.grow({seq.id: count}):
            if alone and len(pages.table.lanes) > 1 and self.pages.table.idle_pages:
                self.pages.clear()  # what it begins with may lie in too many chunks
            elif alone:
                (self.aside if self._hope.of([seq]) else self.stuck).append(seq)
            self.held = "memory"
            return False
        self._begin(seq, start, pages)
        self.rows.append(Row(seq, start, count, start + count == len(seq.tokens)))
        self._budget -= count
        return True

    def _begin(self, seq: Seq, start: int, pages: PlannedPages) -> None:
        self.pages = pages
        self.admitted[seq] = start
        self._computing.add(seq, pages)

    def _to_come(self, pages: PlannedPages, seq: Seq) -> int:
        return bytes_to_come(pages.table, seq, self._at_once)


def _held(budget: int, spare: int, places: int, *, alone: bool, apart: bool = False) -> Held | None:
    """What keeps a sequence from being admitted; one that is alone needs but tokens.

    Args:
        budget: tokens that are left.
        spare, places: bytes and places that are left behind it.
        apart: see `Seq`.
    """
    if not budget:
        return "tokens"
    if alone:
        return None
    if spare < 0:
        return "memory"
    if apart:
        return "alone"
    return "places" if places < 0 else None
