"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from kvrt.dialect.events import Arguments, Called, Content, Event, Thought
from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Delta, Result
from kvrt.server.anthropic.blocks import functions, in_openais_words
from kvrt.server.anthropic.errors import broken, refused
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.served import Served
from kvrt.server.wire.http import event
from kvrt.server.words.fields import (
    Messages,
    Named,
    Sampling,
    Share,
    StopText,
    Tokens,
    TopK,
)
from kvrt.server.words.structured import both, held_to
from kvrt.server.words.talk import Choice, Spoken, Talk, as_said, choose

Blocks = Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class Conversation(Named, kw_only=True):
    """What both routes take. Of the second group, only what changes nothing is taken."""

    messages: Messages
    system: str | Blocks | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def choice(self, served: Served) -> Choice:
        """Which tools there are, and what must be called. Raises `Refusal`."""
        wish = self.tool_choice or {}
        kind = wish.get("type", "auto")
        one = {"type": "function", "name": wish.get("name")}
        kinds: dict[str, str | dict[str, Any]] = {
            "auto": "auto", "none": "none", "any": "required", "tool": one,
        }  # fmt: skip
        wanted = kinds.get(kind) if isinstance(kind, str) else None
        if wanted is None:
            raise Refusal(400, "tool_choice must be auto, any, tool or none", param="tool_choice")
        several = wish.get("disable_parallel_tool_use") is not True
        return choose(served, [*map(functions, self.tools or ())], wanted, several=several)

    def chat(self, served: Served, choice: Choice) -> Chat:
        """As one prompt. Where the assistant spoke last, the answer goes on from there.

        Raises:
            Refusal: reasoning is asked for, and the model's template shows none.
        """
        thinks = (self.thinking or {}).get("type", "disabled") != "disabled"
        if thinks and served.dialect.reasoning is None:
            raise Refusal(400, "thinking: the model's chat template shows none", param="thinking")
        system = [("system", {"role": "system", "content": self.system})]
        placed = [*(system if self.system is not None else ()), *in_openais_words(self.messages)]
        places, messages = zip(*placed, strict=True) if placed else ((), ())
        continues = self.messages[-1].get("role") == "assistant"
        return Chat(
            as_said(served.dialect, messages, places),
            tools=choice.tools or None,
            variables={"enable_thinking": True} if thinks else {},
            continue_final_message=continues,
        )


class OutputConfig(msgspec.Struct):
    """What the answer may be; how much effort it is worth changes nothing."""

    format: dict[str, Any] | None = None
    effort: str | None = None


class MessagesRequest(Conversation, kw_only=True):
    """The fields of a request."""

    max_tokens: Tokens
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=64)] | None = None
    stream: bool | None = None

    output_config: OutputConfig | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class MessagesApi:
    """The route's protocol."""

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def read(self, body: bytes) -> "MessagesCall":
        request = self._served.fields(body, MessagesRequest)
        adapter = self._served.adapter(request.model)
        choice = request.choice(self._served)
        form = None if request.output_config is None else request.output_config.format
        fields = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
        )
        held = both(held_to(fields, form, "output_config"), choice.held())
        talk = Talk(self._served, choice, held=held.field not in ("", "tools"))
        params = self._served.defaults.params(
            fields,
            max_tokens=request.max_tokens,
            prompt_logprobs=0 if request.max_tokens == 0 else None,
            constraint=held.constraint,
            skip_special_tokens=talk.skips_special(None),
        )
        chat = request.chat(self._served, choice)
        asks = [Ask(chat, params, held.field, adapter)]
        return MessagesCall(self._served, request, asks, talk)


@dataclass(slots=True)
class MessagesCall:
    """One request, and its answer."""

    moves: ClassVar[bool] = True

    served: Served
    request: MessagesRequest
    asks: Sequence[Ask]
    talk: Talk
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    _spoken: Spoken | None = None
    _blocks: int = 0  # that have begun
    _kind: str = ""  # of the block that is open

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        (result,) = results
        (completion,) = result.completions
        spoken = self.talk.spoken(result.prompt_token_ids)
        spoken.push(completion.text)
        spoken.end()
        content: list[dict[str, Any]] = []
        if spoken.reasoning:
            content.append({"type": "thinking", "thinking": spoken.reasoning, "signature": ""})
        if spoken.content or not spoken.calls:
            content.append({"type": "text", "text": spoken.content})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.data}
            for call in spoken.calls
        ]
        ended = self._ended(completion, spoken)
        return {**self._message(_usage(result)), "content": content, **ended}

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._spoken = self.talk.spoken(prompts[0])
        usage = {"input_tokens": len(prompts[0]), "output_tokens": 0}
        yield _event("message_start", message=self._message(usage))

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        assert self._spoken is not None, "the stream was opened"
        pieces = self._spoken.push(delta.text)
        if delta.finish_reason is not None:
            pieces += self._spoken.end()
        for place, piece in pieces:
            yield from self._said(place, piece, self._spoken)

    def _said(self, place: int, piece: Event, spoken: Spoken) -> Iterator[bytes]:
        match piece:
            case Content(text):
                yield from self._opened({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case Thought(text):
                yield from self._opened({"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Called(name):
                yield from self._closed()
                block = {"id": spoken.calls[place].id, "name": name, "input": {}}
                yield from self._opened({"type": "tool_use", **block})
            case Arguments(text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _opened(self, block: dict[str, Any]) -> Iterator[bytes]:
        """Begin a block, unless one of its kind is open."""
        if self._kind != block["type"]:
            yield from self._closed()
            yield _event("content_block_start", index=self._blocks, content_block=block)
            self._kind = block["type"]
            self._blocks += 1

    def _closed(self) -> Iterator[bytes]:
        if self._kind:
            yield _event("content_block_stop", index=self._blocks - 1)
            self._kind = ""

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        (result,) = results
        assert self._spoken is not None, "the stream was opened"
        ended = self._ended(result.completions[0], self._spoken)
        if not self._blocks:
            yield from self._opened({"type": "text", "text": ""})
        yield from self._closed()
        yield _event("message_delta", delta=ended, usage=_usage(result))
        yield _event("message_stop")

    def _message(self, usage: Mapping[str, int]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _ended(self, completion: Completion, spoken: Spoken) -> dict[str, Any]:
        """Why it ended."""
        if completion.finish_reason != "stop":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if spoken.calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        stop = self._stop_of(completion)
        reason = "end_turn" if stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _stop_of(self, completion: Completion) -> str | None:
        """The stop sequence that the last token completed; None: that token ended the answer."""
        last = completion.token_ids[-1]
        if last in self.served.model.eos_ids:
            return None
        said = self.served.text(completion.token_ids)
        newest = len(self.served.token_text(last))
        tails = {stop: said[-len(stop) - newest :] for stop in self.request.stop_sequences or ()}
        return next((stop for stop, tail in tails.items() if stop in tail), None)


def _usage(result: Result) -> dict[str, int]:
    """Tokens of the prompt that were found in the cache are counted apart."""
    cached = result.usage.cached_tokens
    return {
        "input_tokens": result.usage.prompt_tokens - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": result.usage.completion_tokens,
    }


def _event(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind)
