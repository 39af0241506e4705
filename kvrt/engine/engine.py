"""The engine: one model on one device, a step at a time.

    step()    plan --> apply --> run --> commit

On a device that computes while the host goes on, the next step is planned while this one runs:

    host      plan 1 | apply, launch 1 | plan 2 | wait, sample 1 | apply, launch 2 | plan 3 | ...
    device                   [--------- 1 ---------]                   [--------- 2 ---------]

It belongs to one thread. `kvrt.engine.worker` gives it one, and `kvrt.engine.mailbox` brings what
is asked.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvrt.engine.answers import UNKNOWN, Answers
from kvrt.engine.events import Observers, StepDone
from kvrt.engine.forward import Forward, NoRoom
from kvrt.engine.guessing import Guessing
from kvrt.engine.live import Live
from kvrt.engine.moves import Moves
from kvrt.engine.neighbours import Neighbours
from kvrt.engine.queue import Queued, queue_of
from kvrt.engine.request import Request
from kvrt.engine.sight import Sight
from kvrt.engine.spans import Spans
from kvrt.errors import KvrtError, WeightsUnreadable
from kvrt.executor.interface import Executor, Failed
from kvrt.kv.memory import Memory
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.picture import GroupPicture
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import tenant_of
from kvrt.model.loader import Model
from kvrt.outputs import FinishReason
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Held, Limits, Row, StepPlan
from kvrt.sched.policy import Policy
from kvrt.sched.speculation import Speculation
from kvrt.sharing.tenant import NotLeased
from kvrt.spi import Capability
from kvrt.units import format_bytes

log = logging.getLogger(__name__)

_WARN_EVERY_S = 60.0
"""Between two warnings that the device has less memory than it may hold: it is asked again soon."""


class Engine:
    """Runs requests on one device.

    Args:
        model: what is asked of it beside its passes: its vocabulary and ends.
        executor: runs it. Whoever made it closes it.
        memory: the KV memory in that executor.
        limits: of one step.
        policy: the order of service.
        draft_ratio: the size of what drafts, a model or a predictor, to that of the model; None:
            there is none.
        observers: of requests and steps; None: there may be some later.
    """

    def __init__(
        self,
        model: Model,
        executor: Executor,
        memory: Memory,
        limits: Limits,
        policy: Policy,
        draft_ratio: float | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.model = model
        self.executor = executor
        self.memory = memory
        self.cache = memory.cache
        self.limits = limits
        self.speculation = Speculation(
            trees=Capability.TREES in executor.info.capabilities and model.spec.branches,
            ratio=draft_ratio,
        )
        self.steps = self.sampled = 0
        self.observers = Observers() if observers is None else observers
        self._spans = Spans()
        self._live = Live(memory, policy, by_model=draft_ratio is not None)
        self._answers = Answers(self._live, self.speculation, model.eos_ids, self._spans)
        self._moves = Moves(self._live, self._answers, memory, policy, self.observers)
        self._guessing: Guessing | None = None
        sight = Sight(model)
        if self.speculation.gain is not None:
            self._guessing = Guessing(
                executor,
                memory,
                self._answers,
                self.speculation,
                limits,
                sight if model.spec.predictor is not None else None,
            )
        self._forward = Forward(executor, memory.cache, sight)
        self._neighbours = Neighbours(memory, self._live, limits)
        self._next_warning = 0.0
        self._planned: StepPlan | None = None  # and applied: what the next step runs
        self._held: tuple[Held | None, frozenset[int]] = (None, frozenset())
        self._parked = False

    @property
    def busy(self) -> bool:
        return bool(self._live) and not self._parked

    def queue(self, most: int) -> tuple[Queued, ...]:
        """The first of those that wait, in their order, as of the last step. From any thread."""
        held, awaiting = self._held
        return queue_of(self._live, self.steps, held, awaiting, most, parked=self._parked)

    def picture(self, cells: int, owner: Callable[[Any], str] | None) -> tuple[GroupPicture, ...]:
        """See `kvrt.Runtime.picture`. From any thread."""
        if owner is None:
            return self.cache.picture(cells)

        def owner_of(seq: SeqId) -> str | None:
            request = self._live.find(seq)
            return None if request is None else owner(request.metadata)

        return self.cache.picture(cells, owner_of)

    def set_share(self, tenant: str, root: bytes, weight: int | None) -> None:
        """See `kvrt.Runtime.set_share`. From any thread, one at a time.

        Args:
            root: what the names of the tenant's pages begin with.
        """
        waiting = self._live.waiting
        waiting.shares = waiting.shares.having(tenant, weight)
        if self.memory.reuse is not None:
            self.memory.reuse.index.set_share(tenant_of(root), weight)

    # --- what comes in -----------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request whose prompt was checked against `capacity_tokens` and the context."""
        others = self.busy
        seq = self._live.add(request, self.steps)
        self._answers.begin(request, seq, self.steps)
        if others and seq in self._live:
            self.memory.expect(seq)

    def abort(self, request: Request, reason: FinishReason = "abort") -> None:
        """End a request in whatever state it is. Its result is delivered when this returns.

        Its pages are nobody's from then on, and free for others when the next step is planned, or
        memory is given back: until then they wait for the step that has been submitted last. A step
        that was planned ahead runs before that, without the request's tokens.
        """
        self._moves.end(self._live.of(request), reason, self.steps)

    def abort_all(self, error: KvrtError) -> None:
        """End every request with `error`; used when the engine cannot go on."""
        self._answers.fail(error)

    # --- rest ------------------------------------------------------------------------------------

    def rest(self) -> float | None:
        """Nothing is to be done: give memory back; see `Memory.rest`."""
        patience = self.memory.rest_parked() if self._parked else self.memory.rest()
        self._neighbours.tell(self.sampled, self._moves.preemptions, at_once=True)
        return patience

    def give_back(self) -> None:
        """What is only cached, and what no page needs, leaves the device: to tiers where there are
        any, but for what is pinned."""
        self.memory.clear(())  # between two steps, none is in flight

    def park(self) -> None:
        """Take no more steps, and have no pages: requests that run wait, and go on later with the
        same text; what is cached goes, to tiers where there are any, but for what is pinned."""
        live = self._live
        while live.fetching and self.memory.offload is not None:
            self.memory.offload.wait()
            self._moves.take_fetched()
        self._planned = None
        running = [*live.running]
        self.memory.clear(running)
        self._moves.preempt(running, self.steps)
        self._parked = True

    def go_on(self) -> None:
        """Take steps again."""
        self._parked = False

    # --- the step ----------------------------------------------------------------------------

    def step(self) -> None:
        """Plan, apply, run, commit. Does nothing if nothing waits or runs."""
        self.steps += 1
        spans = self._spans
        spans.begin(wanted=self.observers.closely)
        spans.turn("fetch")
        self._moves.take_fetched()
        self._neighbours.heed()
        self._neighbours.tell(self.sampled, self._moves.preemptions)
        plan, self._planned = self._planned, None
        if plan is None:
            spans.turn("plan")
            self.memory.make_room(hurry=self._neighbours.wait_for_us())
            plan = self.speculation.extend(self._plan(self._live.running), self.limits)
            if self._neighbours.may_give(plan.stuck):
                return
            failed = self._apply(plan)
            if failed is not None:
                self._make_do(failed)
                return
        rows = [row for row in plan.rows if row.seq in self._live]
        rows.sort(key=lambda row: row.seq.adapter)  # those of one adapter are computed together
        if plan.rooms and self._guessing is not None:
            spans.turn("draft")
            rows = self._guessing.fill(rows, plan.rooms)
        if not rows and self.memory.offload is not None:
            spans.turn("fetch")
            self.memory.offload.wait()
        if not rows and self.memory.later is not None:
            self._neighbours.wait_for_machine()
        if rows:
            try:
                self._carry_out(rows)
            except NoRoom as error:
                self._carry_out_alone(rows, error.seq)
            except WeightsUnreadable as error:
                log.error("a step failed: %s", error)
                self.executor.finish()  # a part of it may have been computed
                self._answers.fail_rows(rows, error, self.steps)
        spans.turn("unmap")
        self.cache.end_step(self.steps)

    def tell_phases(self) -> None:
        """What the step was spent on, if somebody wants to know."""
        if self._spans.on:
            self.observers.tell(self._spans.told(self.steps, self._live.counts))

    def _carry_out(self, rows: Sequence[Row]) -> None:
        """Run a batch whose pages are there, and plan the next one meanwhile, if it can be."""
        answers, spans = self._answers, self._spans
        spans.run(rows)
        scored = [answers.scored(row) for row in rows]
        started = time.perf_counter()
        logits, fence = self._forward.run(rows, scored)
        spans.turn("index")
        branches = any(answers.branches(row) for row in rows)
        for row in rows:
            row.seq.computed += row.count - len(row.drafts)
            if row.samples and row.seq.together is None:  # beams get theirs when all are computed
                row.seq.tokens.append(UNKNOWN)
        self.memory.computed(row.seq for row in rows)
        over = self.cache.bytes_over_limit > 0
        unknown = over or branches or fence.done() or self.speculation.hopes(rows)
        ahead = None if unknown else self._plan_ahead()
        spans.turn("sample")
        drawn = answers.draw(rows, scored, logits)
        spans.turn("wait")
        fence.wait()
        # If it fails there may still be enough, once what ended has given its pages back.
        if ahead is not None and self._apply(ahead) is None:
            self._planned = ahead
        spans.turn("answer")
        answers.take(drawn, self.steps)
        self._measure(rows, started)

    def _plan(self, running: Iterable[Seq]) -> StepPlan:
        plan = plan_step(
            self.cache.table,
            running,
            self._live.waiting,
            self.limits,
            self.steps,
            self.memory.reuse,
            self._live.fetching,
            shed=self._neighbours.wait_for_us(),
            later=self.memory.later,
        )
        self._held = plan.held, frozenset(seq.id for seq in plan.awaiting)
        return plan

    def _plan_ahead(self) -> StepPlan | None:
        """The step after the one in flight, as far as it can be known.

        Sequences may turn out to have ended: they lose their rows, and their pages, when it is so.
        A plan that takes pages from somebody is none: what ends may leave enough.
        """
        self._spans.enter("plan ahead")
        plan = self._plan([s for s in self._live.running if len(s.tokens) < s.max_len])
        self._spans.leave()
        return None if plan.preempted or plan.stuck or plan.aside else plan

    def _make_do(self, failed: Failed) -> None:
        """The device has less than the limit promised: plan again with what is held."""
        if isinstance(failed.error, NotLeased):
            return  # another tenant was quicker
        if self.memory.heed_now():
            self._neighbours.wait_for_machine()
            return
        limit = self.cache.limit_to_held()
        now = time.monotonic()
        level = logging.WARNING if now >= self._next_warning else logging.DEBUG
        if level == logging.WARNING:
            self._next_warning = now + _WARN_EVERY_S
        log.log(
            level,
            "the device is out of memory (%s); the KV cache goes on with %s",
            failed.error, format_bytes(limit),
        )  # fmt: skip

    def _carry_out_alone(self, rows: Sequence[Row], seq: Seq) -> None:
        """The device has no memory to compute anything of a sequence beside the pages there are:
        others give theirs back. If that does not help, the sequence ends."""
        live, held = self._live, self.cache.held_bytes
        request = live.request(seq)
        others = [other for other in live.running if live.request(other) is not request]
        self.executor.finish()  # of the step, a part may have been computed
        self.memory.clear(others)
        self._moves.preempt(others, self.steps)
        own = [row for row in rows if row.seq in live.running]
        try:
            self._carry_out(own)
        except NoRoom as error:
            for row in own:
                self.memory.commit(self.cache.table.truncate(row.seq.id, row.start))
            if self.memory.may_come(error.needed):
                seqs = [row.seq for row in own]
                self.memory.clear(seqs)
                self._moves.set_aside(seqs, self.cache.table.limit, self.steps)
                self._neighbours.wait_for_machine()
            else:
                self._moves.end([error.seq], "capacity", self.steps)
            return
        limit = self.cache.limit_below(held)
        log.warning(
            "the device had no memory left to compute in; the KV cache goes on with %s",
            format_bytes(limit),
        )

    def _apply(self, plan: StepPlan) -> Failed | None:
        """Take the plan's pages and sequences over; if it failed, nothing has changed."""
        self._spans.turn("map")
        failed = self.memory.commit(plan.change)
        if failed is not None:
            return failed
        self._moves.follow(plan, self.steps)
        return None

    def _measure(self, rows: Sequence[Row], started: float) -> None:
        """Tell how long the step took, sampling included: what its tokens would cost again."""
        tokens = sum(row.count for row in rows)
        context = sum(row.count * (row.start + row.count // 2) for row in rows) // tokens
        seconds = time.perf_counter() - started
        self.memory.measured(tokens, context, seconds)
        self.sampled += sum(row.samples for row in rows)
        if all(row.samples for row in rows):
            self.speculation.cost.observe(tokens, seconds)
        if self.observers:
            running, waiting = self._live.counts
            self.observers.tell(StepDone(self.steps, seconds, tokens, running, waiting))
