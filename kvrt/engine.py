"""The engine: one model on one device, a step at a time.

    step()    plan --> apply --> run --> commit

On a device that computes while the host goes on, the next step is planned while this one runs:

    host      plan 1 | apply, launch 1 | plan 2 | wait, sample 1 | apply, launch 2 | plan 3 | ...
    device                   [--------- 1 ---------]                   [--------- 2 ---------]

It belongs to one thread. `kvrt.runtime` gives it one and speaks to it through a queue.
"""

import itertools
import logging
import time
from collections.abc import Sequence

import torch

from kvrt.errors import CapacityError, KvrtError
from kvrt.memory import Memory
from kvrt.model.loader import Model
from kvrt.outputs import FinishReason
from kvrt.pages.apply import Failed
from kvrt.request import Request
from kvrt.sampler import Choice, Chosen, sample, token_logprobs
from kvrt.sched.batching import Limits, Row, StepPlan, plan_step
from kvrt.sched.drafting import Speculation, parents_of
from kvrt.sched.policy import Policy
from kvrt.sched.seq import Seq
from kvrt.sched.speculation import Drafts
from kvrt.spi import Capability, Device, Ticket
from kvrt.units import format_bytes

log = logging.getLogger(__name__)

_UNKNOWN = -1
"""Stands for a token that the step in flight will yield."""


class Engine:
    """Runs requests on one device.

    Args:
        model: loaded for `device`.
        device: opened by the caller, who also closes it.
        memory: the KV memory on that device.
        limits: of one step.
        policy: the order of service.
    """

    def __init__(
        self, model: Model, device: Device, memory: Memory, limits: Limits, policy: Policy
    ) -> None:
        self.model = model
        self.device = device
        self.memory = memory
        self.cache = memory.cache
        self.limits = limits
        self.policy = policy
        self.speculation = Speculation(trees=Capability.TREES in device.info.capabilities)
        self.steps = 0
        self._ids = itertools.count(1)
        self._waiting: list[Seq] = []
        self._running: list[Seq] = []
        self._fetching: list[Seq] = []
        self._requests: dict[int, Request] = {}  # by the id of each of its live sequences
        self._planned: StepPlan | None = None  # and applied: what the next step runs

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._fetching)

    # --- what comes in -----------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request whose prompt was checked against `capacity_tokens` and the context."""
        number = next(self._ids)
        seq = Seq(
            id=number,
            tokens=list(request.prompt),
            prompt_len=len(request.prompt),
            max_len=request.max_len,
            priority=request.priority,
            arrival=number,
            width=request.params.n,
            waiting_since=self.steps,
            root=request.root,
            matches=request.params.prompt_logprobs is None,  # they need each prompt token's logits
            shares=request.shares,
            drafter=self.speculation.drafter(request.drafts),
        )
        request.open_output(seq)
        self._requests[seq.id] = request
        if self.busy:
            self.memory.expect(seq)
        self._waiting.append(seq)

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End a request in whatever state it is; its pages are free when this returns."""
        for seq in [s for s in self._all() if self._requests[s.id].id == request_id]:
            self._end(seq, reason)

    def abort_all(self, error: KvrtError) -> None:
        """End every request with `error`; used when the engine cannot go on."""
        for request in dict.fromkeys(self._requests.values()):
            for output in request.outputs.values():
                if output.finish_reason is None:
                    request.deliver(output.finish("error"))
            request.deliver(request.result(error))
        self._requests.clear()
        self._waiting.clear()
        self._running.clear()
        self._fetching.clear()

    def _all(self) -> list[Seq]:
        return self._running + self._fetching + self._waiting

    # --- the step ----------------------------------------------------------------------------

    def step(self) -> None:
        """Plan, apply, run, commit. Does nothing if nothing waits or runs."""
        self.steps += 1
        self._take_fetched()
        plan, self._planned = self._planned, None
        if plan is None:
            self.memory.evict_over_limit()
            plan = self.speculation.extend(self._plan(self._running), self.limits)
            failed = self._apply(plan)
            if failed is not None:
                self._make_do(failed)
                return
        rows = [row for row in plan.rows if row.seq.id in self._requests]
        if not rows and self.memory.offload is not None:
            self.memory.offload.wait()
        if rows:
            scored = [self._scored_positions(row) for row in rows]
            started = time.perf_counter()
            logits = self._run(rows, scored)
            fence = self.device.fence()
            forks = any(row.samples and row.seq.width > 1 for row in rows)
            for row in rows:
                row.seq.computed += row.count - len(row.drafts)
                self.memory.computed(row.seq)
                if row.samples:
                    row.seq.tokens.append(_UNKNOWN)
            unknown = forks or fence.done() or self.speculation.hopes(rows)
            self._commit(rows, scored, logits, fence, None if unknown else self._plan_ahead())
            self._measure(rows, started)
        self.cache.end_step(self.steps)

    def _plan(self, running: Sequence[Seq]) -> StepPlan:
        return plan_step(
            self.cache.table,
            running,
            self._waiting,
            self.limits,
            self.policy,
            self.steps,
            self.memory.reuse,
            self._fetching,
        )

    def _plan_ahead(self) -> StepPlan | None:
        """The step after the one in flight, as far as it can be known.

        Sequences may turn out to have ended: they lose their rows, and their pages, when it is so.
        A plan that takes pages from somebody is none: what ends may leave enough.
        """
        plan = self._plan([s for s in self._running if len(s.tokens) < s.max_len])
        return None if plan.preempted or plan.stuck else plan

    def _make_do(self, failed: Failed) -> None:
        """The device has less than the limit promised: plan again with what is held."""
        limit = self.cache.limit_to_held()
        log.warning(
            "the device is out of memory (%s); the KV cache goes on with %s",
            failed.error, format_bytes(limit),
        )  # fmt: skip

    def _apply(self, plan: StepPlan) -> Failed | None:
        """Take the plan's pages and sequences over; if it failed, nothing has changed."""
        failed = self.memory.commit(plan.change)
        if failed is not None:
            return failed
        for seq in plan.preempted:
            self._preempt(seq)
        for seq, cached in plan.admitted.items():
            self._waiting.remove(seq)
            (self._fetching if seq in plan.fetches else self._running).append(seq)
            seq.rank = self.policy.rank(seq, self.steps)
            self.memory.begin(seq, plan)
            request = self._requests[seq.id]
            if request.scheduled is None:
                request.scheduled = time.perf_counter()
                request.cached_tokens = cached
        for seq in plan.stuck:
            self._end(seq, "capacity")
        return None

    def _take_fetched(self) -> None:
        """Sequences whose pages came back go on behind them."""
        for seq, tokens in self.memory.fetched():
            self._fetching.remove(seq)
            self._running.append(seq)
            request = self._requests[seq.id]
            if not request.preemptions:
                request.cached_tokens += tokens

    def _preempt(self, seq: Seq) -> None:
        self._running.remove(seq)
        self._waiting.append(seq)
        seq.computed = seq.named = 0
        seq.preemptions += 1
        seq.waiting_since = self.steps
        self._requests[seq.id].preemptions += 1

    def _scored_positions(self, row: Row) -> range:
        """Positions in the row whose logits give the log-probability of a prompt token."""
        request = self._requests[row.seq.id]
        if request.params.prompt_logprobs is None:
            return range(0)
        first = max(row.start, len(request.prompt_logprobs))
        last = min(row.start + row.count, len(request.prompt) - 1)
        return range(first, last)

    def _run(self, rows: Sequence[Row], scored: Sequence[range]) -> torch.Tensor:
        """One forward pass; of each row, logits at scored positions, at the sample, at drafts."""
        tokens: list[int] = []
        wanted: list[int] = []
        for row, positions in zip(rows, scored, strict=True):
            wanted += [len(tokens) + at - row.start for at in positions]
            tokens += row.seq.tokens[row.start : row.start + row.count - len(row.drafts)]
            if row.samples:
                wanted += range(len(tokens) - 1, len(tokens) + len(row.drafts))
            tokens += row.drafts.tokens
        batch = self.cache.batch(
            [row.seq.id for row in rows], [row.count for row in rows], parents_of(rows)
        )
        return self.model.decoder.forward(torch.tensor(tokens), batch, torch.tensor(wanted))

    def _commit(
        self,
        rows: Sequence[Row],
        scored: Sequence[range],
        logits: torch.Tensor,
        fence: Ticket,
        ahead: StepPlan | None,
    ) -> None:
        """Take over what the step computed: forks, new tokens, the next plan, ended sequences."""
        at = 0
        picks: list[int] = []
        choices: list[Choice] = []
        receivers: list[tuple[Seq, Drafts]] = []
        for row, positions in zip(rows, scored, strict=True):
            seq, request = row.seq, self._requests[row.seq.id]
            for position in positions:
                token = request.prompt[position + 1]
                top = request.params.prompt_logprobs or 0
                request.prompt_logprobs.append(token_logprobs(logits[at], token, top))
                at += 1
            if row.samples:
                for heir in (seq, *self._fork(seq, request)):
                    picks.append(at)
                    choices.append(self._choice(heir, request))
                    receivers.append((heir, row.drafts))
                at += 1
                for node in range(len(row.drafts)):
                    picks.append(at)
                    choices.append(self._choice(seq, request, row.drafts.line(node)))
                    at += 1
        if len(picks) != at or picks != list(range(at)):
            logits = logits[torch.tensor(picks, dtype=torch.int64)]
        chosen = sample(logits, choices)
        fence.wait()
        # If it fails there may still be enough, once what ended has given its pages back.
        if ahead is not None and self._apply(ahead) is None:
            self._planned = ahead
        drawn = iter(chosen)
        for seq, drafts in receivers:
            self._verify(seq, drafts, list(itertools.islice(drawn, 1 + len(drafts))))

    def _measure(self, rows: Sequence[Row], started: float) -> None:
        """Tell how long the step took, sampling included: what its tokens would cost again."""
        tokens = sum(row.count for row in rows)
        context = sum(row.count * (row.start + row.count // 2) for row in rows) // tokens
        seconds = time.perf_counter() - started
        self.memory.measured(tokens, context, seconds)
        if all(row.samples for row in rows):
            self.speculation.cost.observe(tokens, seconds)

    def _fork(self, seq: Seq, request: Request) -> list[Seq]:
        """The siblings that share `seq`'s pages from the end of its prompt on, if it has any."""
        heirs = []
        while seq.width > 1:
            seq.width -= 1
            number = next(self._ids)
            heir = Seq(
                id=number,
                tokens=list(seq.tokens),
                prompt_len=seq.prompt_len,
                max_len=seq.max_len,
                priority=seq.priority,
                arrival=seq.arrival,
                computed=seq.computed,
                rank=seq.rank,
                root=seq.root,
                matches=seq.matches,
                shares=seq.shares,
                names=list(seq.names),
                named=seq.named,
                drafter=self.speculation.drafter(request.drafts),
            )
            self.cache.commit(self.cache.table.fork(seq.id, heir.id))
            request.open_output(heir)
            self._requests[heir.id] = request
            self._running.append(heir)
            heirs.append(heir)
        return heirs

    def _choice(self, seq: Seq, request: Request, drafted: Sequence[int] = ()) -> Choice:
        """How to draw what follows the sequence and, if it comes true, a line of drafts."""
        output = request.outputs[seq.id]
        seed = (request.seed + output.index) % 2**64
        said = [*output.token_ids, *drafted] if drafted else output.token_ids
        return Choice(request.params, seed, request.prompt, said)

    def _verify(self, seq: Seq, drafts: Drafts, chosen: Sequence[Chosen]) -> None:
        """Take the token drawn behind the sequence, and those behind drafts that came true."""
        request, start = self._requests[seq.id], seq.computed
        path = drafts.path([choice.token_id for choice in chosen]) if drafts else []
        request.drafted_tokens += len(drafts)
        self.speculation.drafted += len(drafts)
        for node in (-1, *path):
            if node >= 0:
                seq.tokens.append(_UNKNOWN)
                request.accepted_tokens += 1
                self.speculation.accepted += 1
            self._take(seq, chosen[1 + node])
            if seq.id not in self._requests:
                return
        if drafts:
            self._settle(seq, start, path)
        if seq.drafter is not None:
            seq.drafter.observe(seq.tokens)

    def _settle(self, seq: Seq, start: int, path: Sequence[int]) -> None:
        """Of the drafts' keys and values, from slot `start` on, only those of `path` stay."""
        picked = [start + node for node in path]
        self.memory.commit(self.cache.table.pick(seq.id, start, picked, after=self.steps))
        seq.computed += len(path)
        self.memory.computed(seq)

    def _take(self, seq: Seq, chosen: Chosen) -> None:
        """Append a sampled token; end the sequence if it was its last."""
        request = self._requests[seq.id]
        if request.first_token is None:
            request.first_token = time.perf_counter()
        seq.tokens[-1] = chosen.token_id
        params = request.params
        ends: FinishReason | None = None
        end_token = chosen.token_id in params.stop_token_ids or (
            not params.ignore_eos and chosen.token_id in self.model.eos_ids
        )
        if end_token:
            ends = "stop"
        elif len(seq.tokens) >= seq.max_len:
            ends = "length"
        delta = request.outputs[seq.id].push(chosen, ends=ends, visible=not end_token)
        request.deliver(delta)
        if delta.finish_reason is not None:
            self._drop(seq)

    # --- what goes out -----------------------------------------------------------------------

    def _end(self, seq: Seq, reason: FinishReason) -> None:
        """End a sequence from outside, without a further token."""
        request = self._requests[seq.id]
        request.deliver(request.outputs[seq.id].finish(reason))
        self._drop(seq)

    def _drop(self, seq: Seq) -> None:
        """Free a finished sequence's pages; with its last sequence, the request is answered."""
        request = self._requests.pop(seq.id)
        if seq in self._running:
            self._running.remove(seq)
        elif seq in self._fetching:
            self._fetching.remove(seq)
        else:
            self._waiting.remove(seq)
        self.memory.end(seq, self.steps)
        if request.finished:
            error = None
            if any(o.finish_reason == "capacity" for o in request.outputs.values()):
                error = CapacityError("the memory limit leaves no room to go on, even alone")
            request.deliver(request.result(error))
