"""What a step is to do: a value, which nothing has happened of yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kvrt.drafting.drafts import NO_DRAFTS, Drafts
from kvrt.kv.index.outside import Fetches
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq

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
