"""``/v1/completions``."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from kvrt.outputs import Completion, Delta, Result, TokenLogprobs
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.openai.errors import broken, refused
from kvrt.server.openai.shared import DONE, Common, finish_reason, number, usage
from kvrt.server.served import Served
from kvrt.server.wire.http import event
from kvrt.server.words.fields import MAX_PROMPTS, TokenId, Tokens, Top
from kvrt.server.words.structured import held_to

DEFAULT_MAX_TOKENS = 16
"""As OpenAI's."""

Prompts = str | list[str | TokenId | list[TokenId]]
"""A text, token ids, or several of one of them."""


class CompletionRequest(Common, kw_only=True):
    """The fields of a request."""

    prompt: Prompts
    max_tokens: Tokens | None = None
    echo: bool | None = None
    logprobs: Top | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None


class Completions:
    """The route's protocol."""

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def read(self, body: bytes) -> "CompletionCall":
        request = self._served.fields(body, CompletionRequest)
        adapter = self._served.adapter(request.model)
        _check_offered(request)
        most = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        scored = request.logprobs if request.echo else None
        held = held_to(request)
        params = self._served.defaults.params(
            request,
            max_tokens=most,
            logprobs=request.logprobs,
            prompt_logprobs=scored or 0 if most == 0 else scored,
            constraint=held.constraint,
        )
        prompts = _several(request.prompt)
        if len(prompts) * params.n > MAX_PROMPTS:
            raise Refusal(
                400,
                f"prompt: {len(prompts)} prompts of n = {params.n} are more than {MAX_PROMPTS}",
                param="prompt",
            )
        asks = [Ask(prompt, params, held.field, adapter) for prompt in prompts]
        return CompletionCall(self._served, request, asks)


def _check_offered(request: CompletionRequest) -> None:
    asked = {
        "suffix": (bool(request.suffix), "is not offered by this server"),
        "best_of": (
            (request.best_of or 0) > (request.n or 1),
            "above n is not offered by this server",
        ),
        "echo": (
            bool(request.echo and request.stream) and request.logprobs is not None,
            "with logprobs is not offered as a stream",
        ),
    }
    for name, (unmet, why) in asked.items():
        if unmet:
            raise Refusal(400, f"{name} {why}", param=name)


def _several(prompt: Prompts) -> Sequence[str | list[int]]:
    """One prompt or several, as several."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [prompt]  # type: ignore[list-item]
    if len(kinds) != 1:
        what = "is empty" if not kinds else "mixes texts, token ids and lists"
        raise Refusal(400, f"prompt {what}", param="prompt")
    return prompt  # type: ignore[return-value]


@dataclass(slots=True)
class CompletionCall:
    """One request, and its answer."""

    moves: ClassVar[bool] = True

    served: Served
    request: CompletionRequest
    asks: Sequence[Ask]
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        choices = [
            self._choice(place, result, completion)
            for place, result in enumerate(results)
            for completion in result.completions
        ]
        return {**self._head(), "choices": choices, "usage": usage(results)}

    def _choice(self, place: int, result: Result, completion: Completion) -> dict[str, Any]:
        echoed = self._echo(place)
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = self._logprobs(completion.logprobs or ())
            if self.request.echo:
                first = result.prompt_token_ids[0]
                entries = [None, *(result.prompt_logprobs or ())]
                logprobs = self._logprobs([*entries, *(completion.logprobs or ())], first)
        return self._piece(
            place, completion.index, echoed + completion.text, logprobs,
            finish_reason(completion.finish_reason),
        )  # fmt: skip

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        for place in range(len(self.asks)):
            if echoed := self._echo(place):
                for index in range(self.asks[place].params.n):
                    yield self._event([self._piece(place, index, echoed)])

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        if delta.text or delta.finish_reason is not None or delta.logprobs:
            wanted = self.request.logprobs is not None
            logprobs = self._logprobs(delta.logprobs or ()) if wanted else None
            reason = finish_reason(delta.finish_reason)
            yield self._event([self._piece(number, delta.index, delta.text, logprobs, reason)])

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        if self.request.with_usage:
            yield event({**self._head(), "choices": [], "usage": usage(results)})
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.request.model,
        }

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        more = {"usage": None} if self.request.with_usage else {}
        return event({**self._head(), "choices": choices, **more})

    def _piece(
        self,
        place: int,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        number = place * self.asks[place].params.n + index
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, place: int) -> str:
        prompt = self.asks[place].prompt
        if not self.request.echo:
            return ""
        return prompt if isinstance(prompt, str) else self.served.text(prompt)  # type: ignore[arg-type]

    def _logprobs(
        self, entries: Sequence[TokenLogprobs | None], first: int | None = None
    ) -> dict[str, Any]:
        """Of tokens, by their texts. The `first` of a prompt has no probability, only None."""
        text = self.served.token_text
        texts = [text(first or 0) if entry is None else text(entry.token_id) for entry in entries]
        offsets, at = [], 0
        for piece in texts:
            offsets.append(at)
            at += len(piece)
        return {
            "tokens": texts,
            "token_logprobs": [None if e is None else number(e.logprob) for e in entries],
            "top_logprobs": [None if e is None else self._likeliest(e) for e in entries],
            "text_offset": offsets,
        }

    def _likeliest(self, entry: TokenLogprobs) -> dict[str, float]:
        """By their texts, the token itself included. Of those that read alike, such as parts of
        characters, the likeliest counts."""
        pairs = [*entry.top[: self.request.logprobs], (entry.token_id, entry.logprob)]
        texts: dict[str, float] = {}
        for token, logprob in pairs:
            texts.setdefault(self.served.token_text(token), number(logprob))
        return texts
