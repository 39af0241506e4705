"""``/v1/messages`` and ``/v1/messages/count_tokens``: text."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvrt.model.chat import Chat
from kvrt.outputs import Completion, Delta, Result
from kvrt.server.anthropic.errors import broken, refused
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.fields import (
    Messages,
    Name,
    Sampling,
    Share,
    StopText,
    Tokens,
    TopK,
    decode,
)
from kvrt.server.http import event
from kvrt.server.served import Served

Blocks = Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class Conversation(msgspec.Struct, kw_only=True):
    """What both routes take. Of the second group, only what changes nothing is taken."""

    model: Name
    messages: Messages
    system: str | Blocks | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def check_offered(self) -> None:
        """Raise `Refusal` for what an answer would have to be without."""
        asked = {
            "tools": bool(self.tools) and (self.tool_choice or {}).get("type") != "none",
            "thinking": (self.thinking or {}).get("type", "disabled") != "disabled",
        }
        for name, unmet in asked.items():
            if unmet:
                raise Refusal(400, f"{name} is not offered by this server", param=name)

    def chat(self) -> Chat:
        """As one prompt. Where the assistant spoke last, the answer goes on from there."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        continues = self.messages[-1].get("role") == "assistant"
        return Chat([*system, *self.messages], continue_final_message=continues)


class MessagesRequest(Conversation, kw_only=True):
    """The fields of a request."""

    max_tokens: Tokens
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=64)] | None = None
    stream: bool | None = None

    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class MessagesApi:
    """The route's protocol."""

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def read(self, body: bytes) -> "MessagesCall":
        request = decode(body, MessagesRequest, strict=self._served.strict)
        self._served.check_name(request.model)
        request.check_offered()
        fields = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
        )
        params = self._served.defaults.params(
            fields,
            max_tokens=request.max_tokens,
            prompt_logprobs=0 if request.max_tokens == 0 else None,
        )
        return MessagesCall(self._served, request, [Ask(request.chat(), params)])


@dataclass(slots=True)
class MessagesCall:
    """One request, and its answer."""

    served: Served
    request: MessagesRequest
    asks: Sequence[Ask]
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        (result,) = results
        (completion,) = result.completions
        content = [{"type": "text", "text": completion.text}]
        return {**self._message(_usage(result)), "content": content, **self._ended(completion)}

    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[bytes]:
        usage = {"input_tokens": prompt_tokens[0], "output_tokens": 0}
        yield _event("message_start", message=self._message(usage))
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        if delta.text:
            said = {"type": "text_delta", "text": delta.text}
            yield _event("content_block_delta", index=0, delta=said)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        (result,) = results
        ended = self._ended(result.completions[0])
        yield _event("content_block_stop", index=0)
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

    def _ended(self, completion: Completion) -> dict[str, Any]:
        """Why it ended."""
        if completion.finish_reason != "stop":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
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
