"""The sequences of an engine, and the requests they belong to."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvrt.drafting.drafter import Drafter
from kvrt.engine.request import Request
from kvrt.kv.memory import Memory
from kvrt.kv.seq import Seq
from kvrt.sched.policy import Policy
from kvrt.sched.speculation import Speculation
from kvrt.sched.waiting import Waiting


class Live:
    """Sequences by what they do: wait for their turn, for pages from elsewhere, or run.

    A request has one sequence when it comes, may have more later, and is gone with its last one.

    Args:
        memory: where their pages are.
        policy: in which order they are to be served.
        by_model: drafts are made by a model, and not looked up in the text.
    """

    def __init__(self, memory: Memory, policy: Policy, *, by_model: bool = False) -> None:
        self.memory = memory
        self._by_model = by_model
        self.waiting = Waiting(policy)
        self.fetching: dict[Seq, None] = {}
        self.running: dict[Seq, None] = {}
        self._requests: dict[int, Request] = {}  # by the id of each of its sequences
        self._seqs: dict[Request, dict[int, Seq]] = {}  # the other way round
        self._ids = itertools.count(1)

    def __iter__(self) -> Iterator[Seq]:
        return itertools.chain(self.running, self.fetching, self.waiting)

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, seq: Seq) -> bool:
        return seq.id in self._requests

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences that run, and that wait, for their turn or for pages from elsewhere."""
        return len(self.running), len(self.waiting) + len(self.fetching)

    def request(self, seq: Seq) -> Request:
        """Whose sequence it is."""
        return self._requests[seq.id]

    def find(self, id: Any) -> Request | None:
        """Whose sequence has this id; None: it has ended."""
        return self._requests.get(id)

    def of(self, request: Request) -> list[Seq]:
        """A request's sequences, in order of arrival; none if it has ended."""
        return [*self._seqs.get(request, {}).values()]

    @property
    def requests(self) -> list[Request]:
        """Each once, in order of arrival."""
        return [*self._seqs]

    def add(self, request: Request, step: int) -> Seq:
        """A new request's first sequence; it waits."""
        number = next(self._ids)
        params = request.params
        seq = Seq(
            id=number,
            tokens=[*request.prompt, *request.said],
            prompt_len=len(request.prompt),
            max_len=request.max_len,
            priority=request.priority,
            arrival=number,
            width=max(params.n, params.beam_width),
            waiting_since=step,
            tenant=request.tenant,
            root=request.root,
            adapter=0 if request.adapter is None else request.adapter.number,
            media=request.media,
            names=list(request.names),
            # Log-probabilities of a prompt need the logits of each token.
            matches=request.shares and params.prompt_logprobs is None,
            shares=request.shares,
            drafter=self._drafter(request),
            guesses=request.drafts if self._by_model else 0,
            together=number if params.beam_width > 1 else None,
        )
        self._own(request, seq)
        self.waiting.append(seq)
        return seq

    def fork(self, seq: Seq) -> Seq:
        """Another sequence that goes on from here; they share `seq`'s pages. Both run."""
        request = self._requests[seq.id]
        heir = replace(
            seq,
            id=next(self._ids),
            tokens=list(seq.tokens),
            names=list(seq.names),
            width=1,
            drafter=self._drafter(request),
        )
        self.memory.commit(self.memory.cache.table.fork(seq.id, heir.id))
        self._own(request, heir)
        self.running[heir] = None
        return heir

    def _drafter(self, request: Request) -> Drafter | None:
        return Speculation.drafter(0 if self._by_model else request.drafts, request.forced)

    def _own(self, request: Request, seq: Seq) -> None:
        self._requests[seq.id] = request
        self._seqs.setdefault(request, {})[seq.id] = seq

    def drop(self, seq: Seq, step: int, *, sound: bool = True) -> None:
        """It has ended, with step number `step` at the latest; its pages are free then.

        Args:
            sound: what its pages hold is as it should be, and may be used again.
        """
        request = self._requests.pop(seq.id)
        del self._seqs[request][seq.id]
        if not self._seqs[request]:
            del self._seqs[request]
        self.running.pop(seq, None)
        self.fetching.pop(seq, None)
        if seq in self.waiting:
            self.waiting.remove(seq)
        if not sound:
            self.memory.doubt(seq)
        self.memory.end(seq, step)

    def clear(self) -> None:
        """Forget all; their pages stay as they are."""
        self._requests.clear()
        self._seqs.clear()
        self.running.clear()
        self.fetching.clear()
        self.waiting.clear()
