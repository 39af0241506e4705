"""Continuous batching: which sequences bring how many tokens to the next step.

(Iteration-level scheduling: Yu et al., Orca, OSDI 2022. Chunked prefill in mixed batches: Agrawal
et al., Sarathi-Serve, OSDI 2024.)

    running  -- decodes first, one token each, then unfinished prompts in chunks ----\\
    waiting  -- admitted in order of rank, tenants in turn, while tokens, places and -+--> rows
                pages are left                                                       |
    pages run out: cached ones are evicted; then the running sequence that is --------/
                   cheapest to bring back loses its place, and its pages are cached ones
    a share that others have borrowed comes back: theirs lose pages to who waits for it (`giving`)

Planning is pure: it returns the next page table and the ops that lead to it, and changes nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvrt.drafting.drafts import NO_DRAFTS, Drafts
from kvrt.kv.index.outside import Fetches
from kvrt.kv.index.reuse import NoReuse, Reuse
from kvrt.kv.index.tenants import TenantsInOrder
from kvrt.kv.pages.lanes import Pages, SeqId, Shortage
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.sched.giving import Givers, stands_with
from kvrt.sched.room import Hope, bytes_to_come
from kvrt.sched.waiting import Waiting, held_by

_EVICTED_AT_ONCE = 16
"""Pages evicted beyond those needed, so that choosing them does not cost every step anew; never
more than an eighth of what is cached."""


Held = Literal["tokens", "places", "memory", "alone"]
"""Why none is admitted any more: the step has no tokens left; no more may run at once; no pages are
left; one runs alone, or has to."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one step: tokens in its batch, and sequences running at once."""

    max_batch_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of the batch: tokens ``[start, start + count)``.

    `samples`: the last of them is the sequence's last token, so the step yields the next one.
    `drafts` follow it, and count as well: those that come true yield further ones.
    """

    seq: Seq
    start: int
    count: int
    samples: bool
    drafts: Drafts = NO_DRAFTS


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step does, and the page table after it.

    Args:
        rows: the batch; a sequence stands in it at most once.
        change: leads to the page table in which the step runs.
        admitted: waiting sequences that start to run, and how many tokens they need not compute.
        fetches: those of them that wait for pages from outside the device first, and which.
        preempted: running sequences that lost their pages, to wait again. If these are all there
            are, they are to run apart: what they had lay in too many chunks (`Seq.apart`).
        stuck: sequences that cannot go on even alone: there is no page left to give them.
        aside: likewise, but there may be pages again: they have none from then on, and wait.
        rooms: sequences that have pages for so many drafts of a model, which are to be made yet.
        held: why some that wait are not admitted; None: there are none, or all are `awaiting`.
        awaiting: sequences that are not admitted, because others just compute their next page.
        wanting: one that is not admitted for want of memory, and how many bytes it lacks.
    """

    rows: tuple[Row, ...]
    change: Change
    admitted: Mapping[Seq, int] = field(default_factory=dict)
    fetches: Mapping[Seq, Fetches] = field(default_factory=dict)
    preempted: tuple[Seq, ...] = ()
    stuck: tuple[Seq, ...] = ()
    aside: tuple[Seq, ...] = ()
    rooms: Mapping[Seq, int] = field(default_factory=dict)
    held: Held | None = None
    awaiting: tuple[Seq, ...] = ()
    wanting: tuple[Seq, int] | None = None

    @property
    def table(self) -> PageTable:
        """The page table after it."""
        return self.change.table


class _Draft:
    """A change that grows.

    Args:
        reuse: what is cached.
        cached: to evict from; None: all of it.
    """

    def __init__(self, change: Change, reuse: Reuse, cached: TenantsInOrder | None = None) -> None:
        self.change = change
        self._reuse = reuse
        self._cached = cached or reuse.in_order()

    @property
    def table(self) -> PageTable:
        return self.change.table

    @property
    def room(self) -> int:
        """Bytes that can be had without taking pages from a sequence."""
        return self.table.free_bytes + self.table.idle_bytes

    @property
    def dropped(self) -> Pages:
        """Of each group, cached pages that are given up."""
        return self.change.dropped

    def copy(self) -> "_Draft":
        return _Draft(self.change, self._reuse, self._cached)

    def do(self, change: Change) -> None:
        self.change = self.change.then(change)

    def preempt(self, seq: Seq) -> None:
        """A sequence loses its pages; those that have names stay cached."""
        self._lose(self.table.free(seq.id))

    def clear(self) -> None:
        """Give up all that is only cached, so that what comes lies in as few chunks as it can."""
        self._cached = self._reuse.in_order()
        self._cached.look_again(self._reuse.entries_of(self.change.idled))
        self.do(self.table.forget(self._cached.take(self.table, self.table.idle_bytes)))

    def keep_to_limit(self) -> bool:
        """Evict what is cached in chunks beyond the limit. False: that does not suffice."""
        while (over := self.table.chunks_over_limit) > 0:
            nbytes = over * self.table.lanes[0].geometry.chunk_bytes
            if not any(evicted := self._cached.take(self.table, nbytes)):
                return False
            self.do(self.table.forget(evicted))
        return True

    def grow(self, tokens: Mapping[SeqId, int]) -> bool:
        """Grow, and evict what must go for it. False: it takes more than there is."""
        return self._take(lambda table: table.grow(tokens), tokens)

    def fetch(self, seq: SeqId, fetches: Fetches) -> bool:
        """Begin a sequence with pages that are there, and new ones for those that come, as `grow`
        does."""
        self.do(self.table.attach(seq, fetches.rows))
        return self._take(lambda table: table.fill(seq, fetches.border, fetches.places))

    def _take(
        self, pages: Callable[[PageTable], Change | Shortage], leaving: Iterable[SeqId] = ()
    ) -> bool:
        """Take pages, and evict what must go for it; at last those that sequences can leave."""
        while isinstance(grown := pages(self.table), Shortage):
            missing = grown.needed - grown.free
            ahead = min(_EVICTED_AT_ONCE, self.table.idle_pages // 8)
            page_bytes = self.table.lanes[grown.group].geometry.page_bytes
            evicted = self._cached.take(self.table, max(missing, ahead) * page_bytes)
            if any(evicted):
                self.do(self.table.forget(evicted))
            elif not self._leave(leaving):
                return False
        self.do(grown)
        return True

    def _leave(self, seqs: Iterable[SeqId]) -> bool:
        """Let sequences leave the named pages before their windows, so that these can be evicted.
        False: there are none."""
        left = self.table.leave(seqs)
        if left.table.used_pages == self.table.used_pages:
            return False
        self._lose(left)
        return True

    def _lose(self, change: Change) -> None:
        """Sequences lose pages; those that have names can be evicted."""
        self.do(change)
        self._cached.look_again(self._reuse.entries_of(change.idled))


class _Computing:
    """The pages that sequences of the batch compute next, and others may wait for.

    Args:
        seqs: that were in the batch before; `add` those that are admitted.
    """

    def __init__(self, reuse: Reuse, seqs: Sequence[Seq], draft: _Draft) -> None:
        self._reuse = reuse
        self._seqs = [*seqs]
        self._look(draft)

    def _look(self, draft: _Draft) -> None:
        self._dropped = draft.dropped
        self._pages: dict[int, set[bytes]] = {}  # their keys, by how many come before
        for seq in self._seqs:
            self._note(seq, draft)

    def add(self, seq: Seq, draft: _Draft) -> None:
        self._seqs.append(seq)
        self._note(seq, draft)

    def _note(self, seq: Seq, draft: _Draft) -> None:
        if names := self._reuse.computing(seq):
            there = self._reuse.found(names, draft.dropped)
            if there < len(names):
                self._pages.setdefault(there, set()).add(names[there].key)

    def awaited(self, seq: Seq, draft: _Draft) -> bool:
        """Whether `seq` needs one of them next: it has all pages before that in common with the
        sequence that computes it, as the key says."""
        if draft.dropped != self._dropped:
            self._look(draft)  # less is there than before
        names = seq.names
        return seq.matches and any(
            there < len(names) and names[there].key in keys for there, keys in self._pages.items()
        )


def plan_step(
    table: PageTable,
    running: Iterable[Seq],
    waiting: Waiting,
    limits: Limits,
    step: int,
    reuse: Reuse | None = None,
    fetching: Collection[Seq] = (),
    *,
    shed: bool = False,
    later: int | None = None,
) -> StepPlan:
    """Plan step number `step`. No step may be in flight: pages freed here are used at once.

    Args:
        shed: after the limit was lowered, sequences do not keep what is beyond it until they end or
            need more: all but the first are preempted for it now, and that one if it can wait.
        later: chunks that the limit may be again, when others of the machine give memory back;
            until then a sequence that has no room even alone waits, and others pass it. None: the
            limit is what there is.
        reuse: which pages are cached, and worth what; None: nothing is reused.
        fetching: admitted before, and still waiting for pages; they keep what they have.
    """
    reuse = reuse or NoReuse()
    order = sorted(running, key=_rank)

    def planned(giving: Collection[Seq]) -> StepPlan:
        return _planned(
            table, order, waiting, limits, step, reuse, fetching, giving, shed=shed, later=later
        )

    plan = planned(())
    if plan.wanting is None or plan.admitted or not waiting.shares:
        return plan
    wanting, lacking = plan.wanting
    givers = Givers(order, fetching, table, reuse, waiting.shares)
    giving = givers.lent(wanting, lacking, limits.max_batch_tokens)
    return planned(giving) if giving else plan


def _planned(
    table: PageTable,
    running: Sequence[Seq],
    waiting: Waiting,
    limits: Limits,
    step: int,
    reuse: Reuse,
    fetching: Collection[Seq],
    giving: Collection[Seq],
    *,
    shed: bool,
    later: int | None,
) -> StepPlan:
    """See `plan_step`.

    Args:
        running: by rank.
        giving: those of them that are preempted, whatever else.
    """
    order = [seq for seq in running if seq not in giving]
    budget = limits.max_batch_tokens
    wants: dict[Seq, int] = {}
    for seq in order:
        if seq.pending == 1 and budget:
            wants[seq] = 1
            budget -= 1
    for seq in order:
        if count := seq.uncut(seq.computed, min(seq.pending, budget)) if seq.pending > 1 else 0:
            wants[seq] = count
            budget -= count

    draft = _Draft(Change(table), reuse)
    preempted = [*giving]
    for seq in giving:
        draft.preempt(seq)
    stuck: list[Seq] = []
    aside: list[Seq] = []
    hope = Hope(table, limits.max_batch_tokens, later)

    def give_way() -> list[Seq]:
        nonlocal budget
        givers = Givers(order, (), draft.table, reuse, waiting.shares)
        victims = givers.victims()
        for victim in victims:
            order.remove(victim)
            draft.preempt(victim)
            budget += wants.pop(victim, 0)
        return victims

    while shed and order and stands_with(order[0], order) != order and not draft.keep_to_limit():
        preempted += give_way()
    if shed and order and hope.of(order) and not draft.keep_to_limit():
        aside += give_way()
    while not draft.grow({seq.id: count for seq, count in wants.items()}):
        if fetching and stands_with(order[0], order) == order:  # it waits for their pages
            wants.clear()
            break
        victims = give_way()
        if order:
            preempted += victims
        elif len(table.lanes) > 1 and not any(victim.apart for victim in victims):
            preempted += victims  # perhaps pages of one group lie where another needs a chunk
            draft.clear()
        else:
            (aside if hope.of(victims) else stuck).extend(victims)

    rows = [Row(seq, seq.computed, count, count == seq.pending) for seq, count in wants.items()]
    admitted: dict[Seq, int] = {}
    fetches: dict[Seq, Fetches] = {}
    held: Held | None = "memory" if preempted or stuck or aside else None
    awaiting: list[Seq] = []
    wanting: tuple[Seq, int] | None = None
    if waiting and held is None:
        placed = (*order, *fetching)
        at_once = limits.max_batch_tokens
        spare = draft.room - sum(bytes_to_come(draft.table, seq, at_once) for seq in placed)
        places = limits.max_running - sum(seq.width for seq in placed)
        apart = any(seq.apart for seq in placed)
        if apart:
            places = 0
        computing = _Computing(reuse, placed, draft)
        passed = False
        for seq in waiting.in_order(step, held_by(placed)):
            if hope.waits(seq):
                passed = True
                continue
            alone = not placed and not admitted
            held = _held(budget, spare, places - 1, alone=alone, apart=apart or seq.apart)
            if held is not None:
                if held == "memory":
                    wanting = seq, bytes_to_come(draft.table, seq, at_once) - spare
                break  # so it is for all that come after it
            if computing.awaited(seq, draft):
                awaiting.append(seq)
                continue
            named, cached = len(seq.names), reuse.match(seq, draft.dropped)
            if len(seq.names) > named and computing.awaited(seq, draft):
                awaiting.append(seq)
                continue
            trial = draft.copy()
            matched = len(cached[0]) if cached else 0
            if matched:
                trial.do(trial.table.attach(seq.id, cached))
            spare -= draft.room - trial.room + bytes_to_come(trial.table, seq, at_once)
            places = 0 if seq.apart else places - seq.width
            held = _held(budget, spare, places, alone=alone)
            if held is not None:
                wanting = (seq, -spare) if held == "memory" else None
                break
            start = trial.table.length(seq.id)
            outside, resumed = reuse.stored(seq, matched, draft.dropped), draft.copy()
            if outside is not None and resumed.fetch(seq.id, outside):
                draft = resumed
                admitted[seq], fetches[seq] = start, outside
                computing.add(seq, draft)
                continue
            count = seq.uncut(start, min(len(seq.tokens) - start, budget))
            if not count:
                break  # a step of its own is large enough
            if not trial.grow({seq.id: count}):
                if alone and len(table.lanes) > 1 and draft.table.idle_pages:
                    draft.clear()  # what it begins with may lie in too many chunks
                elif alone:
                    (aside if hope.of([seq]) else stuck).append(seq)
                held = "memory"
                break
            draft = trial
            admitted[seq] = start
            computing.add(seq, draft)
            rows.append(Row(seq, start, count, start + count == len(seq.tokens)))
            budget -= count
        if passed and held is None:
            held = "memory"
    return StepPlan(
        tuple(rows), draft.change, admitted, fetches, tuple(preempted), tuple(stuck), tuple(aside),
        held=held, awaiting=tuple(awaiting), wanting=wanting,
    )  # fmt: skip


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


def _rank(seq: Seq) -> tuple[int, int]:
    return seq.rank
