"""``/v1/chat/completions`` as llama-server answers there: OpenAI's, with timings."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from kvrt.errors import RequestError
from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Delta, Result, TokenLogprobs
from kvrt.sampling import MAX_LOGPROBS
from kvrt.server.asking import Ask, AskedAdapter
from kvrt.server.llama.errors import broken, refused
from kvrt.server.llama.fields import Count, Wishes, held, settle
from kvrt.server.llama.front import Front
from kvrt.server.llama.places import WAITS, Turn
from kvrt.server.llama.told import BUILD, probabilities, settings, timings
from kvrt.server.openai.chat import ChatCall, ChatCompletions, ChatRequest
from kvrt.server.openai.shared import DONE, usage
from kvrt.server.wire.http import event
from kvrt.server.words.fields import Sampling
from kvrt.server.words.structured import Held
from kvrt.server.words.talk import Talk

TOP = 20
"""Likeliest tokens that are told where a request does not say how many."""


class LlamaChatRequest(ChatRequest, kw_only=True):
    """The fields of a request, but for `Wishes`, whose bounds hold where both have one."""

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Any = None


SAME = tuple(field for field in Sampling.__struct_fields__ if field != "model")
"""Fields that are settled as `Wishes`."""


class LlamaChat:
    """The route's protocol.

    Args:
        front: what is asked.
    """

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, front: Front) -> None:
        self._front = front

    def read(self, body: bytes) -> ChatCall:
        front = self._front
        wishes = front.served.fields(body, Wishes)
        settle(wishes, front.face, front.model)
        return _Reading(front, wishes).read(body)

    def prompt(self, body: bytes) -> str:
        """What the chat template makes of a request's messages."""
        chat = self.read(body).asks[0].prompt
        assert isinstance(chat, Chat), "it is one of messages"
        return self._front.model.need_tokenizer().render(chat)


class _Reading(ChatCompletions):
    """Of one request.

    Args:
        wishes: what it says in llama-server's words, settled.
    """

    def __init__(self, front: Front, wishes: Wishes) -> None:
        super().__init__(front.served)
        self._front = front
        self._wishes = wishes

    def _fields(self, body: bytes) -> ChatRequest:
        face, wishes = self._front.face, self._wishes
        request = self._served.fields(body, LlamaChatRequest)
        for name in SAME:
            setattr(request, name, getattr(wishes, name))
        given = (request.max_completion_tokens, request.max_tokens, wishes.n_predict)
        most = next((each for each in given if each is not None), face.n_predict)
        request.max_completion_tokens = None
        request.max_tokens = None if most < 0 else most
        if wishes.n_probs:
            request.logprobs, request.top_logprobs = True, wishes.n_probs
        elif request.logprobs and request.top_logprobs is None:
            request.top_logprobs = TOP
        own = request.chat_template_kwargs or {}
        request.chat_template_kwargs = {**face.template_kwargs, **own}
        last = [each.get("role") for each in request.messages[-2:]]
        if last == ["assistant"] * 2:
            raise RequestError("of two answers at the end, none can be continued", param="messages")
        if last[-1] == "assistant" and request.add_generation_prompt is None:
            request.continue_final_message = True
        return request

    def _adapter(self, request: ChatRequest) -> AskedAdapter | None:
        return self._front.scales.asked(self._wishes.lora)[0]

    def _held(self, request: ChatRequest) -> Held:
        own = held(self._wishes, self._front.face)
        return own if own.constraint is not None else super()._held(request)

    def _call(
        self, request: ChatRequest, asks: Sequence[Ask], logprobs: int | None, talk: Talk
    ) -> "LlamaChatCall":
        wishes = self._wishes
        told = settings(
            asks[0].params, wishes, self._front.scales.asked(wishes.lora)[1],
            stream=bool(request.stream), wanted=logprobs, chat=True,
            thinks=self._served.dialect.reasoning is not None,
        )  # fmt: skip
        return LlamaChatCall(
            self._served, request, asks, logprobs, talk,
            front=self._front, wishes=wishes, told=told,
        )  # fmt: skip


@dataclass(kw_only=True)
class LlamaChatCall(ChatCall):
    """One request, and its answer.

    Args:
        wishes: what was asked in llama-server's words.
        told: see `settings`.
        turns: of the answers, once it is asked.
    """

    moves: ClassVar[bool] = False

    front: Front
    wishes: Wishes
    told: Mapping[str, Any]
    turns: Sequence[Turn] = ()
    begun: float = field(default_factory=time.monotonic)
    _prompt: int = 0
    _ends: list[dict[str, Any]] = field(default_factory=list)
    _now: Turn | None = None

    @property
    def id_slot(self) -> int:
        return WAITS if self.wishes.id_slot is None else self.wishes.id_slot

    def whole(self, results: Sequence[Result]) -> object:
        (result,) = results
        choices = [self._choice(result, each) for each in result.completions]
        for turn, each in zip(self.turns, result.completions, strict=True):
            turn.said, turn.cached = len(each.token_ids), result.usage.cached_tokens
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": usage(results), "timings": timings(result)}

    def _choice(self, result: Result, completion: Completion) -> dict[str, Any]:
        choice = super()._choice(result, completion)
        del choice["message"]["refusal"]
        if choice["logprobs"] is None:
            del choice["logprobs"]
        return choice

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._prompt = len(prompts[0])
        self._spoken = [self.talk.spoken(prompts[0]) for _ in range(self.asks[0].params.n)]
        for index, turn in enumerate(self.turns):
            self._now = turn
            yield self._begun(index, turn)

    def _begun(self, index: int, turn: Turn) -> bytes:
        """Of a choice, before anything is said."""
        chunk = self._chunked(index, {"role": "assistant", "content": None}, None, None)
        pace, come = self._running(turn)
        if self.wishes.timings_per_token:
            chunk["timings"] = pace
        return event(chunk | ({"prompt_progress": come} if self.wishes.return_progress else {}))

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        turn = self._now = self.turns[delta.index]
        if self.wishes.return_progress and not turn.said:
            yield self._begun(delta.index, turn)
        turn.said += len(delta.token_ids)
        turn.lines = turn.lines or "\n" in delta.text
        yield from super().piece(number, delta)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        """The end of each choice comes last of all, since it has the timings."""
        (result,) = results
        for turn in self.turns:
            turn.cached = result.usage.cached_tokens
        chunks = self._ends
        if self.request.with_usage:
            head = self._head("chat.completion.chunk")
            chunks = [*chunks, {**head, "choices": [], "usage": usage(results)}]
        for chunk in chunks[:-1]:
            yield event(chunk)
        yield event(chunks[-1] | {"timings": timings(result)})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "created": self.created,
            "id": self.id,
            "model": self.front.name,
            "system_fingerprint": BUILD,
            "object": kind,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        if reason is not None:  # what a last token without a text had is told before the end
            self._ends.append(self._chunked(index, delta, None, reason))
            return b"" if logprobs is None else self._chunk(index, {"content": ""}, logprobs)
        chunk = self._chunked(index, delta, logprobs, None)
        if self.wishes.timings_per_token and self._now is not None:
            chunk["timings"] = self._running(self._now)[0]
        return event(chunk)

    def _chunked(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"finish_reason": reason, "index": index, "delta": delta}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if self.logprobs is None or not entries:
            return None
        return {"content": probabilities(self.served, entries, self.logprobs)}

    def _running(self, turn: Turn) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.front.running(turn, 0, self._prompt, self.begun)
