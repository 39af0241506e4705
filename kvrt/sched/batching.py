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

from collections.abc import Collection, Iterable, Sequence

from kvrt.kv.index.reuse import NoReuse, Reuse
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.sched.admission import Admission
from kvrt.sched.giving import Givers, stands_with
from kvrt.sched.pages import PlannedPages
from kvrt.sched.plan import Limits, Row, StepPlan
from kvrt.sched.room import Hope
from kvrt.sched.waiting import Waiting, held_by


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

    pages = PlannedPages(Change(table), reuse)
    preempted = [*giving]
    for seq in giving:
        pages.preempt(seq)
    stuck: list[Seq] = []
    aside: list[Seq] = []
    hope = Hope(table, limits.max_batch_tokens, later)

    def give_way() -> list[Seq]:
        nonlocal budget
        givers = Givers(order, (), pages.table, reuse, waiting.shares)
        victims = givers.victims()
        for victim in victims:
            order.remove(victim)
            pages.preempt(victim)
            budget += wants.pop(victim, 0)
        return victims

    while (
        shed
        and order
        and stands_with(order[0], order) != order
        and not pages.keep_to_limit(fetching)
    ):
        preempted += give_way()
    if shed and order and hope.of(order) and not pages.keep_to_limit(fetching):
        aside += give_way()
    while not pages.grow({seq.id: count for seq, count in wants.items()}):
        if fetching and stands_with(order[0], order) == order:  # it waits for their pages
            wants.clear()
            break
        victims = give_way()
        if order:
            preempted += victims
        elif len(table.lanes) > 1 and not any(victim.apart for victim in victims):
            preempted += victims  # perhaps pages of one group lie where another needs a chunk
            pages.clear()
        else:
            (aside if hope.of(victims) else stuck).extend(victims)

    rows = [Row(seq, seq.computed, count, count == seq.pending) for seq, count in wants.items()]
    short = bool(preempted or stuck or aside)
    if short or not waiting:
        return StepPlan(
            tuple(rows),
            pages.change,
            preempted=tuple(preempted),
            stuck=tuple(stuck),
            aside=tuple(aside),
            held="memory" if short else None,
        )
    placed = (*order, *fetching)
    admission = Admission(pages, placed, budget, limits, reuse, hope)
    admission.admit(waiting.in_order(step, held_by(placed)))
    return StepPlan(
        (*rows, *admission.rows),
        admission.pages.change,
        admission.admitted,
        admission.fetches,
        stuck=tuple(admission.stuck),
        aside=tuple(admission.aside),
        held=admission.held,
        awaiting=tuple(admission.awaiting),
        wanting=admission.wanting,
    )


def _rank(seq: Seq) -> tuple[int, int]:
    return seq.rank
