"""``/v1/responses``: text, whole or as a stream. Nothing is kept: each request brings all of its
conversation."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from kvrt.model.chat import Chat
from kvrt.outputs import Completion, Delta, Result
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.fields import Name, Sampling, Tokens, decode
from kvrt.server.http import event
from kvrt.server.openai.errors import refused
from kvrt.server.served import Served
from kvrt.server.structured import held_to

Items = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
TEXTS = ("input_text", "output_text", "text")
ROLES = {"developer": "system"}
"""Newer names of what chat templates know."""


class ResponsesRequest(Sampling, kw_only=True):
    """The fields of a request. Of the second group, only what changes nothing is taken."""

    model: Name
    input: str | Items
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    stream: bool | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: str | None = None
    user: str | None = None


class Responses:
    """The route's protocol."""

    refused = staticmethod(refused)

    def __init__(self, served: Served) -> None:
        self._served = served

    def read(self, body: bytes) -> "ResponsesCall":
        request = decode(body, ResponsesRequest, strict=self._served.strict)
        self._served.check_name(request.model)
        _check_offered(request)
        held = held_to(request, _form(request), "text")
        params = self._served.defaults.params(
            request,
            n=1,
            max_tokens=request.max_output_tokens,
            prompt_logprobs=0 if request.max_output_tokens == 0 else None,
            constraint=held.constraint,
        )
        return ResponsesCall(request, [Ask(Chat(_messages(request)), params, held.field)])

    def broken(self, refusal: Refusal) -> bytes:
        """The last event of a stream that could not go on."""
        fields = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
        return event({"type": "error", "sequence_number": 0, **fields}, "error")


def _check_offered(request: ResponsesRequest) -> None:
    """What is not offered is refused: an answer without it would not be what was asked for."""
    asked = {
        "tools": bool(request.tools) and request.tool_choice != "none",
        "previous_response_id": request.previous_response_id is not None,
        "conversation": request.conversation is not None,
        "prompt": request.prompt is not None,
        "background": bool(request.background),
    }
    for name, unmet in asked.items():
        if unmet:
            raise Refusal(400, f"{name} is not offered by this server", param=name)


def _form(request: ResponsesRequest) -> dict[str, Any] | None:
    """What ``text.format`` holds the answer to."""
    form = (request.text or {}).get("format")
    if not isinstance(form, dict | None):
        raise Refusal(400, "text.format must be an object", param="text")
    return form


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The instructions and the input, as a chat template takes them."""
    first = [] if request.instructions is None else [_message("system", request.instructions)]
    if isinstance(request.input, str):
        return [*first, _message("user", request.input)]
    return [*first, *(_of_item(place, item) for place, item in enumerate(request.input))]


def _of_item(place: int, item: dict[str, Any]) -> dict[str, Any]:
    role, content = item.get("role"), item.get("content")
    if item.get("type", "message") != "message" or not isinstance(role, str):
        raise Refusal(400, f"input {place} is no message, and others are not read", param="input")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") in TEXTS for part in content):
            raise Refusal(400, f"input {place} has content other than text", param="input")
        content = [{"type": "text", "text": part.get("text")} for part in content]
    return _message(ROLES.get(role, role), content)


def _message(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


@dataclass(slots=True)
class ResponsesCall:
    """One request, and its answer."""

    request: ResponsesRequest
    asks: Sequence[Ask]
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    item: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        (result,) = results
        (completion,) = result.completions
        status = _status(completion)
        short = status == "incomplete"
        used = result.usage
        return {
            **self._response(status),
            "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "output": [self._output(status, [_part(completion.text)])],
            "usage": {
                "input_tokens": used.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": used.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": used.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used.prompt_tokens + used.completion_tokens,
            },
        }

    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[bytes]:
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = self._output("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place, part=_part(""))

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        if delta.text:
            said = {"delta": delta.text, "logprobs": []}
            yield self._event("response.output_text.delta", **self._place, **said)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        completion = results[0].completions[0]
        status, text = _status(completion), completion.text
        said = {"text": text, "logprobs": []}
        yield self._event("response.output_text.done", **self._place, **said)
        yield self._event("response.content_part.done", **self._place, part=_part(text))
        item = self._output(status, [_part(text)])
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{status}", response=self.whole(results))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    def _output(self, status: str, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str) -> dict[str, Any]:
        params, request = self.asks[0].params, self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "text": {"format": _form(request) or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": params.top_p,
            "truncation": "disabled",
        }


def _status(completion: Completion) -> str:
    return "completed" if completion.finish_reason == "stop" else "incomplete"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
