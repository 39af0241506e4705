"""``/v1/embeddings``: vectors of texts, by a model beside the one that answers."""

import asyncio
import base64
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.errors import Refusal
from kvrt.server.fields import Name, TokenId, decode
from kvrt.server.http import read_body
from kvrt.server.plain import answer
from kvrt.server.service import Service

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder

MAX_TEXTS = 2048
"""In one request, as OpenAI's."""

MAX_BODY = 32 << 20

Inputs = (
    str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=MAX_TEXTS)]
)
"""A text, token ids, or several of one of them."""


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The fields of a request. The last two are ours: see `kvrt.Embedder.embed`."""

    input: Inputs
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: str | None = None
    prompt: str | None = None
    truncate: bool = False


class Embeddings:
    """The route.

    Args:
        service: that it is part of.
        embedder: makes the vectors; None: nothing does.
    """

    def __init__(self, service: Service, embedder: "Embedder | None") -> None:
        self._service = service
        self._embedder = embedder

    async def create(self, request: Request) -> Response:
        """Answer one request."""
        if self._embedder is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "this server has no model for embeddings: it was started without --embed-model",
                code="model_not_found",
            )
        body = await read_body(request.scope, request.receive, MAX_BODY)
        asked = decode(body, EmbeddingRequest, strict=self._service.served.strict)
        self._check_name(self._embedder, asked.model)
        made = await asyncio.to_thread(
            self._embedder.embed,
            _several(asked.input),
            prompt=asked.prompt,
            truncate=asked.truncate,
            dimensions=asked.dimensions,
        )
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if asked.encoding_format == "base64"
                else vector.tolist(),
            }
            for index, vector in enumerate(made.vectors)
        ]
        count = sum(made.tokens)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return answer({"object": "list", "data": data, "model": asked.model, "usage": usage})

    def _check_name(self, embedder: "Embedder", name: str) -> None:
        own = Path(embedder.name).expanduser().name
        if name not in (own, embedder.name) and not self._service.served.any_name:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"no such model; this server makes embeddings with {own}",
                param="model",
                code="model_not_found",
            )


def _several(given: Any) -> list[str | list[int]]:
    """The texts, or the token ids of each."""
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "input is neither texts nor token ids alone", param="input"
        )
    return [list(given)] if kinds == {int} else list(given)
