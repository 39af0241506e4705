"""Continuous batching: which sequences bring how many tokens to the next step.

(Iteration-level scheduling: Yu et al., Orca, OSDI 2022. Chunked prefill in mixed batches: Agrawal
et al., Sarathi-Serve, OSDI 2024.)

    running  -- decodes first, one token each, then unfinished prompts in chunks ----\\
    waiting  -- admitted in order of rank while tokens, places and pages are left  ---+--> rows
    pages run out: the running sequence with the largest rank gives its pages back --/

Planning is pure: it returns the next page table and the ops that lead to it, and changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvrt.pages.ops import Op
from kvrt.pages.table import PageTable, Shortage
from kvrt.sched.policy import Policy
from kvrt.sched.seq import Seq

LOOKAHEAD_TOKENS = 64
"""Admission leaves every running sequence the pages for so many more tokens, so that a newcomer
is not paid for by a preemption a moment later."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one step: tokens in its batch, and sequences running at once."""

    max_batch_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of the batch: tokens ``[start, start + count)``.

    `samples`: the last of them is the sequence's last token, so the step yields the next one.
    """

    seq: Seq
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step does, and the page table after it.

    Args:
        rows: the batch; a sequence stands in it at most once.
        table: the page table in which the step runs.
        ops: what leads there from the current table.
        admitted: waiting sequences that start to run.
        preempted: running sequences that lost their pages, to wait again.
        stuck: sequences that cannot go on even alone: there is no page left to give them.
    """

    rows: tuple[Row, ...]
    table: PageTable
    ops: tuple[Op, ...]
    admitted: tuple[Seq, ...] = ()
    preempted: tuple[Seq, ...] = ()
    stuck: tuple[Seq, ...] = ()


def plan_step(
    table: PageTable,
    running: Sequence[Seq],
    waiting: Sequence[Seq],
    limits: Limits,
    policy: Policy,
    step: int,
) -> StepPlan:
    """Plan step number `step`. No step may be in flight: pages freed here are used at once."""
    order = sorted(running, key=_rank)
    budget = limits.max_batch_tokens
    wants: dict[Seq, int] = {}
    for seq in order:
        if seq.pending == 1 and budget:
            wants[seq] = 1
            budget -= 1
    for seq in order:
        if seq.pending > 1 and budget:
            wants[seq] = min(seq.pending, budget)
            budget -= wants[seq]

    ops: list[Op] = []
    preempted: list[Seq] = []
    stuck: list[Seq] = []
    while isinstance(grown := table.grow({s.id: n for s, n in wants.items()}), Shortage):
        victim = order.pop()
        freed = table.free(victim.id)
        table = freed.table
        ops += freed.ops
        budget += wants.pop(victim, 0)
        (preempted if order else stuck).append(victim)
    table = grown.table
    ops += grown.ops

    admitted: dict[Seq, int] = {}
    if not preempted and not stuck:
        free = table.free_pages
        spare = free - sum(_pages_to_come(table, seq) for seq in order)
        places = limits.max_running - sum(seq.width for seq in order)
        for seq in sorted(waiting, key=lambda seq: policy.rank(seq, step)):
            alone = not order and not admitted
            spare -= _pages_to_come(table, seq)
            places -= seq.width
            if not budget or (not alone and (spare < 0 or places < 0)):
                break
            count = min(seq.pending, budget)
            free -= table.geometry.pages_for(count)
            if free < 0:
                if alone:
                    stuck.append(seq)
                break
            admitted[seq] = count
            budget -= count
        grown = table.grow({s.id: n for s, n in admitted.items()})
        assert not isinstance(grown, Shortage), "free_pages are pages that can be handed out"
        table = grown.table
        ops += grown.ops

    wants.update(admitted)
    rows = tuple(Row(seq, seq.computed, n, n == seq.pending) for seq, n in wants.items())
    return StepPlan(rows, table, tuple(ops), tuple(admitted), tuple(preempted), tuple(stuck))


def _rank(seq: Seq) -> tuple[int, int]:
    return seq.rank


def _pages_to_come(table: PageTable, seq: Seq) -> int:
    """Pages `seq` does not hold yet, and will need for its tokens and the look-ahead."""
    size = table.geometry.page_size
    known = len(seq.tokens)
    ahead = min(known + LOOKAHEAD_TOKENS, seq.max_len)
    needed = -(-ahead // size)
    if seq.width > 1:  # its siblings share full pages of the prompt, and need their own after that
        needed += (seq.width - 1) * (needed - known // size)
    return max(0, needed - len(table.pages(seq.id)))
