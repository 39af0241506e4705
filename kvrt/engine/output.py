"""One completion as it grows: tokens become text, up to where a stop string may begin."""

from typing import Protocol

from kvrt.engine.sampler import Chosen
from kvrt.engine.stops import StopStrings
from kvrt.outputs import Completion, Delta, FinishReason, TokenLogprobs
from kvrt.sampling import SamplingParams
from kvrt.structured.guide import Guide


class Detokenizer(Protocol):
    """Turns tokens into text, one at a time; text comes when its characters are complete."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Output:
    """Holds back text that may turn out to begin a stop string."""

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        stops: StopStrings,
        detokenizer: Detokenizer | None,
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.score: float | None = None
        self.guide: Guide | None = None
        self._stops = stops
        self._state = 0
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
        if len(self.token_ids) >= self._min_tokens:
            self._state, at = self._stops.find(self._state, text)
            if at is not None:
                self._held, ends = self._held[: known + at], "stop"
        logprobs = None if chosen.logprobs is None else (chosen.logprobs,)
        return self._release(ends, (chosen.token_id,), logprobs)

    def finish(self, reason: FinishReason) -> Delta:
        """End without a further token."""
        if self._detokenizer is not None:
            self._held += self._detokenizer.flush()
        return self._release(reason, ())

    def fail(self) -> Delta:
        """End without another look at the text: what computed it may be what failed."""
        return self._release("error", ())

    def _release(
        self,
        ends: FinishReason | None,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None = None,
    ) -> Delta:
        keep = self._stops.begun(self._state) if ends is None else 0
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        self._sent += text
        self.finish_reason = ends
        return Delta(self.index, text, tokens, ends, logprobs)

    def completion(self) -> Completion:
        assert self.finish_reason is not None, "an unfinished output has no completion"
        logprobs = tuple(self.logprobs) if self.logprobs else None
        return Completion(
            self.index, self._sent, tuple(self.token_ids), self.finish_reason, logprobs, self.score
        )
