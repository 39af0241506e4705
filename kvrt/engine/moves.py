"""Sequences begin, give their pages up, come back, and end; who observes is told.

    waiting ---> (fetching) ---> running ---> ended
       ^                            |
       +-------- preempted ---------+

Their pages are a plan's matter, which has been applied when they move.
"""

import time
from collections.abc import Iterable

from kvrt.engine import beaming
from kvrt.engine.answers import Answers
from kvrt.engine.events import (
    Observers,
    RequestFetched,
    RequestFetching,
    RequestPreempted,
    RequestResumed,
    RequestStarted,
)
from kvrt.engine.live import Live
from kvrt.kv.memory import Memory
from kvrt.kv.seq import Seq
from kvrt.outputs import FinishReason
from kvrt.sched.plan import StepPlan
from kvrt.sched.policy import Policy


class Moves:
    """Of one engine; see the module.

    Args:
        live: the sequences.
        answers: end them.
        policy: ranks those that begin.
        observers: are told.
    """

    def __init__(
        self, live: Live, answers: Answers, memory: Memory, policy: Policy, observers: Observers
    ) -> None:
        self._live = live
        self._answers = answers
        self._memory = memory
        self._policy = policy
        self._observers = observers
        self.preemptions = 0

    def follow(self, plan: StepPlan, step: int) -> None:
        """As a plan says that was applied."""
        live = self._live
        apart = len(plan.preempted) == len(live.running)
        for seq in plan.preempted:
            if seq in live.running:  # it may have gone with other beams
                seq.apart = apart
                self._preempt(seq, step)
        self.set_aside(plan.aside, plan.table.limit, step)
        for seq, cached in plan.admitted.items():
            self._begin(seq, cached, plan, step)
        self.end(plan.stuck, "capacity", step)

    def preempt(self, seqs: Iterable[Seq], step: int) -> None:
        """They have no pages any more, and wait."""
        for seq in seqs:
            if seq in self._live.running:  # it may have gone with other beams
                self._preempt(seq, step)

    def set_aside(self, seqs: Iterable[Seq], chunks: int, step: int) -> None:
        """There is too little of the machine's memory, so many chunks: they wait until there is
        more by an eighth, so that they are not begun with in vain each time there is a little."""
        for seq in seqs:
            seq.needs = chunks + max(1, chunks // 8)
            self.preempt([seq], step)

    def take_fetched(self) -> None:
        """Sequences whose pages came back go on behind them."""
        for seq, tokens in self._memory.fetched():
            del self._live.fetching[seq]
            self._live.running[seq] = None
            request = self._live.request(seq)
            if not request.preemptions:
                cached = min(request.cached_tokens + tokens, seq.prompt_len)
                request.cached_tokens = cached
            self._observers.tell(RequestFetched(request.id, request.metadata, tokens))

    def end(self, seqs: Iterable[Seq], reason: FinishReason, step: int) -> None:
        for seq in seqs:
            if seq in self._live:  # it may have ended with other beams
                self._answers.end(seq, reason, step)

    def _begin(self, seq: Seq, cached: int, plan: StepPlan, step: int) -> None:
        live = self._live
        live.waiting.remove(seq)
        (live.fetching if seq in plan.fetches else live.running)[seq] = None
        seq.rank = self._policy.rank(seq, step)
        self._memory.begin(seq, cached, plan.fetches.get(seq))
        request = live.request(seq)
        if request.scheduled is None:
            request.scheduled = time.perf_counter()
            request.cached_tokens = min(cached, seq.prompt_len)
            self._observers.tell(RequestStarted(request.id, request.metadata, cached))
        elif seq.preemptions:
            self._observers.tell(RequestResumed(request.id, request.metadata, cached))
        if seq in plan.fetches:
            self._observers.tell(RequestFetching(request.id, request.metadata))

    def _preempt(self, seq: Seq, step: int) -> None:
        live = self._live
        request = live.request(seq)
        request.preemptions += 1
        self.preemptions += 1
        self._observers.tell(RequestPreempted(request.id, request.metadata))
        if request.beams is not None:
            seq = beaming.gather(live, request, step)
        del live.running[seq]
        seq.computed = seq.named = seq.drafted = 0
        seq.preemptions += 1
        seq.waiting_since = step
        live.waiting.append(seq)
