"""``/v1/chat/completions``."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvrt.dialect.events import Arguments, Called, Content, Event, Thought
from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Delta, FinishReason, Result, TokenLogprobs
from kvrt.server.asking import Ask, AskedAdapter
from kvrt.server.errors import Refusal
from kvrt.server.openai.errors import broken, refused
from kvrt.server.openai.shared import DONE, Common, finish_reason, token_entries, usage
from kvrt.server.served import Served
from kvrt.server.wire.http import event
from kvrt.server.words.fields import Messages, Tokens, Top
from kvrt.server.words.structured import Held, both, held_to
from kvrt.server.words.talk import Call, Spoken, Talk, as_said, choose


class ChatRequest(Common, kw_only=True):
    """The fields of a request. Of the second group, only what changes nothing is taken."""

    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatCompletions:
    """The route's protocol."""

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def read(self, body: bytes) -> "ChatCall":
        request = self._fields(body)
        adapter = self._adapter(request)
        _check_offered(request)
        choice = choose(
            self._served,
            request.tools or (),
            request.tool_choice,
            several=request.parallel_tool_calls is not False,
        )
        held = both(self._held(request), choice.held())
        talk = Talk(self._served, choice, held=held.field not in ("", "tools"))
        wanted = request.top_logprobs or 0 if request.logprobs else None
        most = request.max_completion_tokens
        most = request.max_tokens if most is None else most
        params = self._served.defaults.params(
            request,
            max_tokens=most,
            logprobs=wanted,
            prompt_logprobs=0 if most == 0 else None,
            constraint=held.constraint,
            skip_special_tokens=talk.skips_special(request.skip_special_tokens),
        )
        chat = Chat(
            as_said(self._served.dialect, request.messages),
            tools=choice.tools or None,
            variables=request.chat_template_kwargs or {},
            continue_final_message=bool(request.continue_final_message),
            add_generation_prompt=request.add_generation_prompt,
        )
        asks = [Ask(chat, params, held.field, adapter)]
        return self._call(request, asks, wanted, talk)

    # What other servers' words for the same differ in.

    def _fields(self, body: bytes) -> ChatRequest:
        return self._served.fields(body, ChatRequest)

    def _adapter(self, request: ChatRequest) -> AskedAdapter | None:
        return self._served.adapter(request.model)

    def _held(self, request: ChatRequest) -> Held:
        return held_to(request, request.response_format, "response_format")

    def _call(
        self, request: ChatRequest, asks: Sequence[Ask], logprobs: int | None, talk: Talk
    ) -> "ChatCall":
        return ChatCall(self._served, request, asks, logprobs, talk)


def _check_offered(request: ChatRequest) -> None:
    """What is not offered is refused: an answer without it would not be what was asked for."""
    old = bool(request.functions) and request.function_call != "none"
    asked = {
        "functions": old,
        "modalities": set(request.modalities or ["text"]) != {"text"},
        "top_logprobs": bool(request.top_logprobs) and not request.logprobs,
    }
    for name, unmet in asked.items():
        if unmet:
            why = "needs logprobs" if name == "top_logprobs" else "is not offered by this server"
            raise Refusal(400, f"{name} {why}", param=name)


@dataclass(slots=True)
class ChatCall:
    """One request, and its answer."""

    moves: ClassVar[bool] = True

    served: Served
    request: ChatRequest
    asks: Sequence[Ask]
    logprobs: int | None
    talk: Talk
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _spoken: list[Spoken] = field(default_factory=list)

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        choices = [self._choice(r, c) for r in results for c in r.completions]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(results)}

    def _choice(self, result: Result, completion: Completion) -> dict[str, Any]:
        spoken = self.talk.spoken(result.prompt_token_ids)
        spoken.push(completion.text)
        spoken.end()
        content = spoken.content if spoken.content or not spoken.calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if spoken.reasoning:
            message["reasoning_content"] = spoken.reasoning
        if spoken.calls:
            message["tool_calls"] = [_call(call) for call in spoken.calls]
        return {
            "index": completion.index,
            "message": message,
            "logprobs": self._logprobs(completion.logprobs),
            "finish_reason": _reason(completion.finish_reason, spoken),
        }

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._spoken = [self.talk.spoken(prompts[0]) for _ in range(self.asks[0].params.n)]
        for index in range(self.asks[0].params.n):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        spoken, logprobs = self._spoken[delta.index], self._logprobs(delta.logprobs)
        events = spoken.push(delta.text)
        if delta.finish_reason is not None:
            events += spoken.end()
        for place, piece in events:
            yield self._chunk(delta.index, _said(place, piece, spoken), logprobs)
            logprobs = None
        if delta.finish_reason is not None or logprobs is not None:
            reason = _reason(delta.finish_reason, spoken)
            said = {"content": ""} if reason is None else {}
            yield self._chunk(delta.index, said, logprobs, reason)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        if self.request.with_usage:
            head = self._head("chat.completion.chunk")
            yield event({**head, "choices": [], "usage": usage(results)})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        more = {"usage": None} if self.request.with_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if self.logprobs is None or entries is None:
            return None
        return {"content": token_entries(self.served, entries, self.logprobs), "refusal": None}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _said(place: int, piece: Event, spoken: Spoken) -> dict[str, Any]:
    """A piece of an answer, as a chunk has it."""
    match piece:
        case Called(name):
            begun = _call(Call(name, "", spoken.calls[place].id))
            return {"tool_calls": [{"index": place, **begun}]}
        case Arguments(text):
            return {"tool_calls": [{"index": place, "function": {"arguments": text}}]}
        case Thought(text):
            return {"reasoning_content": text}
        case Content(text):
            return {"content": text}


def _reason(reason: FinishReason | None, spoken: Spoken) -> str | None:
    return "tool_calls" if reason == "stop" and spoken.calls else finish_reason(reason)
