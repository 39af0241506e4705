"""Routes that do not ask the model for an answer: how the server does, tokens and texts."""

import asyncio
import platform
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

import kvrt
from kvrt.engine.prompts import read_prompt
from kvrt.model.chat.templates import Chat
from kvrt.server.anthropic.messages import Conversation
from kvrt.server.errors import Refusal
from kvrt.server.openai.responses import Responses
from kvrt.server.service import Service
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import Message, TokenId, decode
from kvrt.server.words.pictures import with_images

MAX_TOKENS = 1 << 20


class TokenizeRequest(msgspec.Struct):
    """Text or messages; `content` is another name of `prompt`."""

    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(msgspec.Struct):
    """Token ids."""

    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]
    model: str | None = None


class Plain:
    """The routes.

    Args:
        service: that they are about.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, request: Request) -> Response:
        """There is something to be kept alive."""
        if not self._service.lives:
            return answer({"status": "the engine has stopped"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return answer({"status": "ok", "live": True})

    async def ready(self, request: Request) -> Response:
        """Requests will be answered: the server does not end, and its engine goes on."""
        if self._service.gate.closing:
            return answer({"status": "shutting down"}, HTTPStatus.SERVICE_UNAVAILABLE)
        if not self._service.moves:
            return answer({"status": "the engine stands still"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return answer({"status": "ok", "ready": True})

    async def model_ready(self, request: Request) -> Response:
        """As the Open Inference Protocol asks: the model answers."""
        name = request.path_params["name"]
        self._service.served.check_name(name)
        ready = await self.ready(request)
        holds = ready.status_code == HTTPStatus.OK
        return answer({"name": name, "ready": holds}, ready.status_code)

    async def metrics(self, request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._service.metrics.text(), media_type=kind)

    async def version(self, request: Request) -> Response:
        return answer({"version": kvrt.__version__, "python": platform.python_version()})

    async def models(self, request: Request) -> Response:
        names = self._service.served.all_names
        data = [self._model(name) for name in names]
        pages = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return answer({"object": "list", "data": data, **pages})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._service.served.check_name(name)
        return answer(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        """In the words of OpenAI's clients and of Anthropic's, which ask at the same place."""
        served = self._service.served
        made = datetime.fromtimestamp(served.created, UTC)
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "kvrt",
            "max_model_len": served.model.max_model_len,
            "type": "model",
            "display_name": name,
            "lifecycle": "active",
            "created_at": made.isoformat(),
            "parent": served.names[0] if name in served.adapters else None,
            "status": {"value": "loaded"},
        }

    async def tokenize(self, request: Request) -> Response:
        served = self._service.served
        body = await read_body(request.scope, request.receive, served.max_body)
        asked = decode(body, TokenizeRequest, strict=served.strict)
        text = asked.prompt if asked.prompt is not None else asked.content
        if (text is None) == (asked.messages is None):
            raise Refusal(400, "give either prompt or messages", param="prompt")
        if asked.messages is not None:
            prompt: str | Chat = Chat(with_images(asked.messages))
            tokens, _ = await asyncio.to_thread(read_prompt, prompt, served.model)
        elif asked.add_special_tokens is False or not text:
            tokens = await asyncio.to_thread(served.model.encode, text or "", special=False)
        else:
            tokens, _ = await asyncio.to_thread(read_prompt, text, served.model)
        longest = served.model.max_model_len
        return answer({"tokens": tokens, "count": len(tokens), "max_model_len": longest})

    async def count_tokens(self, request: Request) -> Response:
        """Of messages, as Anthropic's clients ask."""
        served = self._service.served
        body = await read_body(request.scope, request.receive, served.max_body)
        asked = served.fields(body, Conversation)
        served.check_name(asked.model)
        chat = asked.chat(served, asked.choice(served))
        tokens, _ = await asyncio.to_thread(read_prompt, chat, served.model)
        return answer({"input_tokens": len(tokens)})

    async def input_tokens(self, request: Request) -> Response:
        """Of a response, as OpenAI's clients ask."""
        served = self._service.served
        body = await read_body(request.scope, request.receive, served.max_body)
        (asked,) = Responses(served).read(body).asks
        tokens, _ = await asyncio.to_thread(read_prompt, asked.prompt, served.model)
        return answer({"object": "response.input_tokens", "input_tokens": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        served = self._service.served
        body = await read_body(request.scope, request.receive, served.max_body)
        asked = decode(body, DetokenizeRequest, strict=served.strict)
        text = await asyncio.to_thread(served.text, asked.tokens, skip_special=False)
        return answer({"prompt": text, "content": text})
