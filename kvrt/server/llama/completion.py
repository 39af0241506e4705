"""``/completion`` in llama-server's own words, and ``/v1/completions`` in OpenAI's with more."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from kvrt.outputs import Completion, Delta, Result, TokenLogprobs
from kvrt.sampling import MAX_COMPLETIONS
from kvrt.server.asking import Ask
from kvrt.server.llama.errors import broken, refused
from kvrt.server.llama.fields import Count, Probs, Prompt, Wishes, held, prompts_of, settle
from kvrt.server.llama.front import Front
from kvrt.server.llama.places import WAITS, Turn
from kvrt.server.llama.told import BUILD, probabilities, settings, timings
from kvrt.server.openai.shared import DONE, finish_reason
from kvrt.server.wire.http import event


class CompletionAsked(Wishes, kw_only=True):
    """The fields of a request."""

    prompt: Prompt
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: Probs | bool | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=MAX_COMPLETIONS)] | None = None
    response_fields: list[str] | None = None
    stream_options: dict[str, Any] | None = None

    @property
    def most(self) -> int | None:
        """Tokens of an answer; None: nothing is said of that."""
        given = (self.n_predict, self.max_completion_tokens, self.max_tokens)
        return next((each for each in given if each is not None), None)


class Completions:
    """A route's protocol.

    Args:
        front: what is asked.
        call: what writes its answers.
    """

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, front: Front, call: "type[CompletionCall]") -> None:
        self._front = front
        self._call = call

    def read(self, body: bytes) -> "CompletionCall":
        return self.of(self._front.served.fields(body, CompletionAsked))

    def of(
        self, asked: CompletionAsked, prompts: Sequence[str | list[int]] = ()
    ) -> "CompletionCall":
        """What is asked.

        Args:
            prompts: in the place of the request's.
        """
        front = self._front
        settle(asked, front.face, front.model)
        adapter, lora = front.scales.asked(asked.lora)
        constrained = held(asked, front.face)
        wanted = (int(asked.logprobs or 0) if asked.n_probs is None else asked.n_probs) or None
        most = front.face.n_predict if asked.most is None else asked.most
        params = front.served.defaults.params(
            asked,
            n=asked.n_cmpl,
            max_tokens=None if most < 0 else most,
            logprobs=wanted,
            prompt_logprobs=0 if most == 0 else None,
            constraint=constrained.constraint,
        )
        found = prompts or prompts_of(asked.prompt, front.model)
        asks = [Ask(prompt, params, constrained.field, adapter) for prompt in found]
        told = settings(params, asked, lora, stream=bool(asked.stream), wanted=wanted)
        return self._call(front, asked, asks, told, wanted)


@dataclass
class CompletionCall:
    """One request, and its answer, in llama-server's own words.

    Args:
        told: see `settings`.
        wanted: likeliest tokens that are told with each one; None: none.
        turns: of the answers, once it is asked.
    """

    moves: ClassVar[bool] = False

    front: Front
    asked: CompletionAsked
    asks: Sequence[Ask]
    told: Mapping[str, Any]
    wanted: int | None
    turns: Sequence[Turn] = ()
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    begun: float = field(default_factory=time.monotonic)
    _prompts: Sequence[Sequence[int]] = ()

    @property
    def stream(self) -> bool:
        return bool(self.asked.stream)

    @property
    def id_slot(self) -> int:
        return WAITS if self.asked.id_slot is None else self.asked.id_slot

    def whole(self, results: Sequence[Result]) -> object:
        told = [self._final(*each) for each in self._ended(results)]
        return told[0] if len(told) == 1 else told

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._prompts = prompts
        if self.asked.return_progress:
            for place in range(len(self.turns)):
                number = place // self.asks[0].params.n
                yield event(self._partial(place, number, "", (), progress=True))

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        place = number * self.asks[0].params.n + delta.index
        turn = self.turns[place]
        if self.asked.return_progress and not turn.said:
            yield event(self._partial(place, number, "", (), progress=True))
        turn.said += len(delta.token_ids)
        turn.lines = turn.lines or "\n" in delta.text
        if delta.token_ids:
            tokens, logprobs = delta.token_ids, delta.logprobs or ()
            yield event(self._partial(place, number, delta.text, tokens, logprobs))

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        for each in self._ended(results):
            yield event(self._final(*each))

    def _ended(self, results: Sequence[Result]) -> Iterator[tuple[int, Result, Completion]]:
        pairs = [(result, each) for result in results for each in result.completions]
        for place, (result, completion) in enumerate(pairs):
            turn = self.turns[place]
            turn.said, turn.cached = len(completion.token_ids), result.usage.cached_tokens
            yield place, result, completion

    def _partial(
        self,
        place: int,
        number: int,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] = (),
        *,
        progress: bool = False,
    ) -> dict[str, Any]:
        turn, prompt = self.turns[place], len(self._prompts[number])
        told = {
            "index": place,
            "content": text,
            "tokens": tokens,
            "stop": False,
            "id_slot": turn.number,
            "tokens_predicted": turn.said,
            "tokens_evaluated": prompt,
        }
        if self.wanted and logprobs:
            listed = probabilities(self.front.served, logprobs, self.wanted)
            told["completion_probabilities"] = listed
        return told | self._running(turn, number, progress=progress)

    def _running(self, turn: Turn, number: int, *, progress: bool) -> dict[str, Any]:
        """How fast it is so far, and how far the prompt has come, if that is wanted."""
        pace, come = self.front.running(turn, number, len(self._prompts[number]), self.begun)
        told: dict[str, Any] = {"timings": pace} if self.asked.timings_per_token else {}
        return told | {"prompt_progress": come} if progress else told

    def _final(self, place: int, result: Result, completion: Completion) -> dict[str, Any]:
        served = self.front.served
        stop, word = self._stopped(completion)
        prompt, said = result.prompt_token_ids, completion.token_ids
        told = {
            "index": place,
            "content": "" if self.stream else completion.text,
            "tokens": said if self.asked.return_tokens and not self.stream else [],
            "id_slot": self.turns[place].number,
            "stop": True,
            "model": self.front.name,
            "tokens_predicted": len(said),
            "tokens_evaluated": len(prompt),
            "generation_settings": self.told,
            "prompt": served.text(prompt, skip_special=False),
            "has_new_line": "\n" in completion.text,
            "truncated": False,
            "stop_type": stop,
            "stopping_word": word,
            "tokens_cached": len(prompt) + max(0, len(said) - 1),
            "timings": timings(result, completion),
        }
        if self.wanted and not self.stream and completion.logprobs:
            listed = probabilities(served, completion.logprobs, self.wanted)
            told["completion_probabilities"] = listed
        if not self.asked.response_fields:
            return told
        return picked(told, self.asked.response_fields)

    def _stopped(self, completion: Completion) -> tuple[str, str]:
        """What ended it: ``eos``, ``word`` or ``limit``; and the word."""
        if completion.finish_reason != "stop":
            return "limit", ""
        served, tokens = self.front.served, completion.token_ids
        if not tokens or tokens[-1] in served.model.eos_ids:
            return "eos", ""
        if served.model.tokenizer is not None:
            rest = served.text(tokens)[len(completion.text) :]
            for word in self.asks[0].params.stop:
                if rest.startswith(word):
                    return "word", word
        return "eos", ""  # nothing more may be said


def picked(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields that are named, by what they are named: one within another is ``a/b``."""
    found: dict[str, Any] = {}
    for name in names:
        inner: Any = told
        for key in name.split("/"):
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            found[name] = inner
    return found


class TextCall(CompletionCall):
    """The same in OpenAI's words."""

    def whole(self, results: Sequence[Result]) -> object:
        first, *others = [self._final(*each) for each in self._ended(results)]
        for each in others:
            first["choices"] += each["choices"]
        return first

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        yield from super().closing(results)
        yield DONE

    def _partial(
        self,
        place: int,
        number: int,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] = (),
        *,
        progress: bool = False,
    ) -> dict[str, Any]:
        chunk = self._chunk(place, text, logprobs, None)
        return chunk | self._running(self.turns[place], number, progress=progress)

    def _final(self, place: int, result: Result, completion: Completion) -> dict[str, Any]:
        said, prompt = len(completion.token_ids), result.usage.prompt_tokens
        text, logprobs = completion.text, completion.logprobs or ()
        reason = finish_reason(completion.finish_reason)
        chunk = self._chunk(place, "", (), reason) if self.stream else self._chunk(
            place, text, logprobs, reason
        )  # fmt: skip
        usage = {
            "completion_tokens": said,
            "prompt_tokens": prompt,
            "total_tokens": said + prompt,
            "prompt_tokens_details": {"cached_tokens": result.usage.cached_tokens},
        }
        return {**chunk, "usage": usage, "timings": timings(result, completion)}

    def _chunk(
        self, place: int, text: str, logprobs: Sequence[TokenLogprobs], reason: str | None
    ) -> dict[str, Any]:
        listed = None
        if self.wanted and logprobs:
            listed = {"content": probabilities(self.front.served, logprobs, self.wanted)}
        choice = {"text": text, "index": place, "logprobs": listed, "finish_reason": reason}
        return {
            "choices": [choice],
            "created": int(time.time()),
            "model": self.front.name,
            "system_fingerprint": BUILD,
            "object": "text_completion",
            "id": self.id,
        }
