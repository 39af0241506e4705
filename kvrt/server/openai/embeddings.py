"""``/v1/embeddings``: vectors of texts, by a model beside the one that answers."""

import asyncio
import base64
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from kvrt.server.beside import check_name
from kvrt.server.errors import Refusal
from kvrt.server.words.fields import Named, TokenId, decode

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder

MAX_TEXTS = 2048
"""In one request, as OpenAI's."""

MAX_BODY = 32 << 20

Inputs = (
    str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=MAX_TEXTS)]
)
"""A text, token ids, or several of one of them."""


class EmbeddingRequest(Named, kw_only=True):
    """The fields of a request. The last two are ours: see `kvrt.Embedder.embed`."""

    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: str | None = None
    prompt: str | None = None
    truncate: bool = False


class Embeddings:
    """The route, behind `kvrt.server.tenants.metering`.

    Args:
        embedder: makes the vectors; None: nothing does.
        strict: fields that are not known are refused.
        any_name: every name is the model's.
    """

    max_body = MAX_BODY

    def __init__(self, embedder: "Embedder | None", *, strict: bool, any_name: bool) -> None:
        self._embedder = embedder
        self._strict = strict
        self._any_name = any_name

    @property
    def missing(self) -> bool:
        """Whether nothing makes vectors."""
        return self._embedder is None

    async def of(self, body: bytes) -> dict[str, Any]:
        """The answer to a request's body."""
        embedder = self.check_there()
        asked = decode(body, EmbeddingRequest, strict=self._strict)
        name = check_name(embedder.name, asked.model, "makes embeddings", any_name=self._any_name)
        made = await asyncio.to_thread(
            embedder.embed,
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
        return {"object": "list", "data": data, "model": name, "usage": usage}

    def check_there(self) -> "Embedder":
        """What makes the vectors."""
        if self._embedder is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "this server has no model for embeddings: it was started without --embed-model",
                code="model_not_found",
            )
        return self._embedder


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
