"""``/v1/responses``: text and calls, whole or as a stream.

Nothing is kept: each request brings all of its conversation.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Delta, Result
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.openai.errors import refused
from kvrt.server.openai.items import Output, Said, messages_of
from kvrt.server.served import Served
from kvrt.server.wire.http import event
from kvrt.server.words.fields import Sampling, Tokens
from kvrt.server.words.structured import both, held_to
from kvrt.server.words.talk import Spoken, Talk, as_said, choose

Items = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
FUNCTION = ("name", "description", "parameters", "strict")
"""Of a tool that is a function, what describes it."""


class ResponsesRequest(Sampling, kw_only=True):
    """The fields of a request. Of the second group, only what changes nothing is taken."""

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
        request = self._served.fields(body, ResponsesRequest)
        adapter = self._served.adapter(request.model)
        _check_offered(request)
        choice = choose(
            self._served,
            _tools(request),
            request.tool_choice,
            several=request.parallel_tool_calls is not False,
        )
        held = both(held_to(request, _form(request), "text"), choice.held())
        talk = Talk(self._served, choice, held=held.field not in ("", "tools"))
        params = self._served.defaults.params(
            request,
            n=1,
            max_tokens=request.max_output_tokens,
            prompt_logprobs=0 if request.max_output_tokens == 0 else None,
            constraint=held.constraint,
            skip_special_tokens=talk.skips_special(request.skip_special_tokens),
        )
        said = as_said(self._served.dialect, *_messages(request))
        ask = Ask(Chat(said, tools=choice.tools or None), params, held.field, adapter)
        return ResponsesCall(request, [ask], talk)

    def broken(self, refusal: Refusal) -> bytes:
        """The last event of a stream that could not go on."""
        fields = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
        return event({"type": "error", "sequence_number": 0, **fields}, "error")


def _check_offered(request: ResponsesRequest) -> None:
    """What is not offered is refused: an answer without it would not be what was asked for."""
    asked = {
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


def _tools(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Functions as chat templates have them; tools of a server's own stay what they are, and are
    refused."""
    found = []
    for tool in request.tools or ():
        function = {name: tool[name] for name in FUNCTION if name in tool}
        own = tool.get("type") == "function"
        found.append({"type": "function", "function": function} if own else tool)
    return found


def _messages(request: ResponsesRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """The instructions and the input, as a chat template takes them, and what errors call each."""
    said = request.input
    items = [{"role": "user", "content": said}] if isinstance(said, str) else said
    messages, places = messages_of(items)
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
        places.insert(0, "instructions")
    return messages, places


@dataclass(slots=True)
class ResponsesCall:
    """One request, and its answer."""

    moves: ClassVar[bool] = False  # its events name what is in them

    request: ResponsesRequest
    asks: Sequence[Ask]
    talk: Talk
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0
    _output: Output = field(default_factory=Output)
    _spoken: Spoken | None = None

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    def whole(self, results: Sequence[Result]) -> object:
        (result,) = results
        self._spoken = self.talk.spoken(result.prompt_token_ids)
        for _ in self._taken(result.completions[0].text, last=True):
            pass
        for _ in self._output.close(_status(result.completions[0])):
            pass
        return self._ended(result)

    def _ended(self, result: Result) -> dict[str, Any]:
        status, used = _status(result.completions[0]), result.usage
        short = status == "incomplete"
        return {
            **self._response(status),
            "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "output": self._output.items,
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

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._spoken = self.talk.spoken(prompts[0])
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        for kind, fields in self._taken(delta.text, last=delta.finish_reason is not None):
            yield self._event(kind, **fields)

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        status = _status(results[0].completions[0])
        for kind, fields in self._output.close(status):
            yield self._event(kind, **fields)
        yield self._event(f"response.{status}", response=self._ended(results[0]))

    def _taken(self, text: str, *, last: bool) -> Iterator[Said]:
        """What is certain with this text, as events."""
        assert self._spoken is not None, "it was begun"
        pieces = self._spoken.push(text)
        if last:
            pieces += self._spoken.end()
        for place, piece in pieces:
            yield from self._output.take(piece, self._spoken.calls[place] if place >= 0 else None)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

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
            "parallel_tool_calls": self.talk.choice.several,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "text": {"format": _form(request) or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": params.top_p,
            "truncation": "disabled",
        }


def _status(completion: Completion) -> str:
    return "completed" if completion.finish_reason == "stop" else "incomplete"
