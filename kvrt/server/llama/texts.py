"""Texts and tokens, as llama-server's clients ask: ``/tokenize``, ``/detokenize``,
``/apply-template``, ``/infill``, and how many tokens a conversation has."""

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.engine.prompts import read_prompt
from kvrt.server.errors import Refusal
from kvrt.server.llama.chat import LlamaChat
from kvrt.server.llama.fields import mixed
from kvrt.server.llama.front import Front
from kvrt.server.plain import MAX_TOKENS
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import TokenId, decode


class TokenizeAsked(msgspec.Struct):
    """A text, or texts and token ids as one."""

    content: str | list[Any] = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class DetokenizeAsked(msgspec.Struct):
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)] = msgspec.field(
        default_factory=list
    )
    model: str | None = None


class Texts:
    """The routes.

    Args:
        front: that they are about.
        chat: reads conversations.
    """

    def __init__(self, front: Front, chat: LlamaChat) -> None:
        self._front = front
        self._chat = chat

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.scope, request.receive, self._front.served.max_body)

    async def tokenize(self, request: Request) -> Response:
        served = self._front.served
        asked = decode(await self._body(request), TokenizeAsked, strict=served.strict)
        parts = [asked.content] if isinstance(asked.content, str) else asked.content
        if not asked.parse_special and any(
            text in part for part in parts if isinstance(part, str) for text in served.special_texts
        ):
            why = "parse_special: special tokens in a text are always read as such"
            raise Refusal(400, why, param="parse_special")
        tokens = await asyncio.to_thread(
            mixed, parts, self._front.model, "content", special=asked.add_special
        )
        if not asked.with_pieces:
            return answer({"tokens": tokens})
        pieces = [{"id": token, "piece": self._piece(token)} for token in tokens]
        return answer({"tokens": pieces})

    def _piece(self, token: int) -> str | list[int]:
        """The text of a token, or its bytes, where they are no text by themselves."""
        tokenizer = self._front.model.need_tokenizer()
        byte = tokenizer.byte(token)
        return self._front.served.token_text(token) if byte is None else [byte]

    async def detokenize(self, request: Request) -> Response:
        served = self._front.served
        asked = decode(await self._body(request), DetokenizeAsked, strict=served.strict)
        text = await asyncio.to_thread(served.text, asked.tokens, skip_special=False)
        return answer({"content": text})

    async def apply_template(self, request: Request) -> Response:
        body = await self._body(request)
        return answer({"prompt": await asyncio.to_thread(self._chat.prompt, body)})

    async def input_tokens(self, request: Request) -> Response:
        """Of a conversation."""
        (asked,) = self._chat.read(await self._body(request)).asks
        tokens, _ = await asyncio.to_thread(read_prompt, asked.prompt, self._front.model)
        return answer({"input_tokens": len(tokens), "object": "response.input_tokens"})
