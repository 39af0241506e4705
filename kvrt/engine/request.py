"""A request while it lives in the engine: its sequences, and what it has said so far."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvrt.engine.sampler import Chosen
from kvrt.engine.stops import StopStrings
from kvrt.errors import KvrtError
from kvrt.kv.tiers.names import PageName
from kvrt.outputs import (
    Completion,
    Delta,
    FinishReason,
    Result,
    Timings,
    TokenLogprobs,
    Usage,
)
from kvrt.sampling import SamplingParams
from kvrt.sched.beams import Beams


class Detokenizer(Protocol):
    """Turns tokens into text, one at a time; text comes when its characters are complete."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Output:
    """One completion as it grows. Holds back text that may turn out to begin a stop string."""

    def __init__(self, index: int, params: SamplingParams, detokenizer: Detokenizer | None) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.score: float | None = None
        self._stops = StopStrings(params.stop)
        self._min_tokens = params.min_tokens
        self._detokenizer = detokenizer
        self._sent = ""
        self._held = ""

    @property
    def text(self) -> str:
        return self._sent

    def push(self, chosen: Chosen, *, ends: FinishReason | None, visible: bool) -> Delta:
        """Take a token. `ends`: it is the last one; `visible`: it is part of the text."""
        self.token_ids.append(chosen.token_id)
        if chosen.logprobs is not None:
            self.logprobs.append(chosen.logprobs)
        text = ""
        if self._detokenizer is not None:
            text = self._detokenizer.push(chosen.token_id) if visible else ""
            if ends is not None:
                text += self._detokenizer.flush()
        known = len(self._held)
        self._held += text
        looks = len(self.token_ids) >= self._min_tokens
        cut = self._stops.find(self._held, known) if looks else -1
        if cut >= 0:
            self._held, ends = self._held[:cut], "stop"
        return self._release(ends, (chosen.token_id,), looks)

    def finish(self, reason: FinishReason) -> Delta:
        """End without a further token."""
        if self._detokenizer is not None:
            self._held += self._detokenizer.flush()
        return self._release(reason, ())

    def fail(self) -> Delta:
        """End without another look at the text: what computed it may be what failed."""
        return self._release("error", ())

    def _release(
        self, ends: FinishReason | None, tokens: tuple[int, ...], looks: bool = True
    ) -> Delta:
        keep = self._stops.begun(self._held) if looks and ends is None else 0
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        self._sent += text
        self.finish_reason = ends
        return Delta(self.index, text, tokens, ends)

    def completion(self) -> Completion:
        assert self.finish_reason is not None, "an unfinished output has no completion"
        logprobs = tuple(self.logprobs) if self.logprobs else None
        return Completion(
            self.index, self._sent, tuple(self.token_ids), self.finish_reason, logprobs, self.score
        )


@dataclass(slots=True, eq=False)
class Request:
    """What was asked, and how far it is. The engine's thread changes it, nobody else.

    Args:
        id: the caller's name for it.
        prompt: token ids, at least one.
        params: how to sample.
        seed: of completion 0; completion i has ``seed + i``.
        max_len: tokens after which a completion ends, prompt included.
        priority: smaller is served first.
        detokenizer: makes one for each completion; None: the model has no tokenizer.
        deliver: called with each `Delta`, and last with the `Result`.
        root: what the names of its pages begin with; see `kvrt.kv.tiers.names`.
        names: of the pages it may begin with, made where nobody waits for it; those that are
            missing are made when they are needed.
        shares: other requests may use its pages.
        drafts: tokens that may be guessed in a step, for each completion; 0: none.
        outputs: by page-table key of the sequence that produces them; of beams, by their index.
        ends: tokens that end a completion.
        bad_words: token ids of each word that is not to be said.
        beams: if it wants the likeliest continuations as wholes; see `kvrt.engine.beaming`.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_len: int
    priority: int
    detokenizer: Callable[[], Detokenizer | None]
    deliver: Callable[[Delta | Result], None]
    root: bytes = b""
    names: Sequence[PageName] = ()
    shares: bool = True
    drafts: int = 0
    bad_words: Sequence[Sequence[int]] = ()
    submitted: float = field(default_factory=time.perf_counter)
    scheduled: float | None = None
    first_token: float | None = None
    preemptions: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    outputs: dict[int, Output] = field(default_factory=dict)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    beams: Beams | None = None

    def open_output(self, key: int) -> Output:
        """Begin the next completion."""
        output = Output(len(self.outputs), self.params, self.detokenizer())
        self.outputs[key] = output
        return output

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs.values())

    def result(self, error: KvrtError | None = None) -> Result:
        now = time.perf_counter()
        completions = tuple(output.completion() for output in self.outputs.values())
        return Result(
            request_id=self.id,
            prompt_token_ids=self.prompt,
            completions=completions,
            usage=Usage(
                prompt_tokens=len(self.prompt),
                completion_tokens=sum(len(c.token_ids) for c in completions),
                preemptions=self.preemptions,
                cached_tokens=self.cached_tokens,
                drafted_tokens=self.drafted_tokens,
                accepted_tokens=self.accepted_tokens,
            ),
            timings=Timings(
                queued=(self.scheduled or now) - self.submitted,
                first_token=(self.first_token or now) - self.submitted,
                total=now - self.submitted,
            ),
            prompt_logprobs=tuple(self.prompt_logprobs)
            if self.params.prompt_logprobs is not None
            else None,
            error=error,
        )


def failed_result(request_id: str, prompt: Sequence[int], error: KvrtError) -> Result:
    """The result of a request that was refused before the engine saw it."""
    return Result(
        request_id, tuple(prompt), (), Usage(len(prompt), 0), Timings(0.0, 0.0, 0.0), error=error
    )
