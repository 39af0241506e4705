"""A request while it lives in the engine: what was asked, and what it has said so far."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvrt.engine.output import Detokenizer, Output
from kvrt.engine.stops import StopStrings
from kvrt.errors import KvrtError
from kvrt.kv.tiers.media import Medium
from kvrt.kv.tiers.names import PageName
from kvrt.model.lora.adapter import Adapter
from kvrt.outputs import Delta, Result, Timings, TokenLogprobs, Usage
from kvrt.sampling import SamplingParams
from kvrt.sched.beams import Beams
from kvrt.structured.guide import BeamGuide, Guide
from kvrt.structured.guides import MakeGuide

_stop_strings = functools.lru_cache(maxsize=8)(StopStrings)
"""Many requests have the same ones, and 64 long ones take 70 ms to prepare."""


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
        tenant: whose it is; see `Seq`.
        root: what the names of its pages begin with; see `kvrt.kv.tiers.names`.
        adapter: what is added to the model for it, which is kept as long as the request lives.
        media: what stands in its prompt in place of tokens' own embeddings.
        names: of the pages it may begin with, made where nobody waits for it; those that are
            missing are made when they are needed.
        shares: other requests may use its pages.
        said: tokens that completion 0 has said elsewhere, which it goes on behind.
        drafts: tokens that may be guessed in a step, for each completion; 0: none.
        forced: the same of tokens that a constraint leaves no choice of.
        guides: makes what says which tokens may follow; None: all may.
        metadata: the caller's own, for its result.
        outputs: by page-table key of the sequence that produces them; of beams, by their index.
        ends: tokens that end a completion.
        bad_words: token ids of each word that is not to be said.
        beams: if it wants the likeliest continuations as wholes; see `kvrt.engine.beaming`.
        guide: what says which tokens may follow those.
        stops: what ends a completion's text.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_len: int
    priority: int
    detokenizer: Callable[[], Detokenizer | None]
    deliver: Callable[[Delta | Result], None]
    tenant: str = ""
    root: bytes = b""
    adapter: Adapter | None = None
    media: Sequence[Medium] = ()
    names: Sequence[PageName] = ()
    shares: bool = True
    said: tuple[int, ...] = ()
    drafts: int = 0
    forced: int = 0
    bad_words: Sequence[Sequence[int]] = ()
    guides: MakeGuide | None = None
    metadata: Any = None
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
    guide: BeamGuide | None = None
    stops: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self.stops = _stop_strings(tuple(self.params.stop))  # in the caller's thread

    def open_output(self, key: int) -> Output:
        """Begin the next completion."""
        output = Output(len(self.outputs), self.params, self.stops, self.detokenizer())
        output.guide = self.new_guide()
        self.outputs[key] = output
        return output

    def new_guide(self) -> Guide | None:
        """For a completion, once it is known what ends one."""
        return None if self.guides is None else self.guides(self.ends)

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
            metadata=self.metadata,
        )


def failed_result(
    request_id: str, prompt: Sequence[int], error: KvrtError, metadata: Any = None
) -> Result:
    """The result of a request that was refused before the engine saw it."""
    return Result(
        request_id,
        tuple(prompt),
        (),
        Usage(len(prompt), 0),
        Timings(0.0, 0.0, 0.0),
        error=error,
        metadata=metadata,
    )
