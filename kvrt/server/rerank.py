"""``/v1/rerank``: texts sorted by what they say about a question, in Jina's and Cohere's words."""

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from kvrt.server.beside import check_name
from kvrt.server.errors import Refusal
from kvrt.server.words.fields import Named, decode

if TYPE_CHECKING:
    from kvrt.embedding.reranker import Reranker

MAX_TEXTS = 2048
MAX_BODY = 32 << 20


class Document(msgspec.Struct):
    """A text, as an object."""

    text: str


Documents = Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_TEXTS)]


class RerankRequest(Named, kw_only=True):
    """The fields of a request. The last two are ours: see `kvrt.Reranker.rank`. Texts that are too
    long are cut where nothing else is said, as these protocols do."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Documents
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False
    instruction: str | None = None
    truncate: bool = True


class Rerank:
    """The route, behind `kvrt.server.tenants.metering`.

    Args:
        reranker: sorts texts; None: nothing does.
        strict: fields that are not known are refused.
        any_name: every name is the model's.
    """

    max_body = MAX_BODY

    def __init__(self, reranker: "Reranker | None", *, strict: bool, any_name: bool) -> None:
        self._reranker = reranker
        self._strict = strict
        self._any_name = any_name

    @property
    def missing(self) -> bool:
        """Whether nothing sorts texts."""
        return self._reranker is None

    async def of(self, body: bytes) -> dict[str, Any]:
        """The answer to a request's body."""
        reranker = self.check_there()
        asked = decode(body, RerankRequest, strict=self._strict)
        name = check_name(reranker.name, asked.model, "sorts texts", any_name=self._any_name)
        texts = [one if isinstance(one, str) else one.text for one in asked.documents]
        ranking = await asyncio.to_thread(
            reranker.rank,
            asked.query,
            texts,
            instruction=asked.instruction,
            truncate=asked.truncate,
        )
        results = [
            _result(index, ranking.scores[index], texts[index] if asked.return_documents else None)
            for index in ranking.order[: asked.top_n]
        ]
        count = sum(ranking.tokens)
        return {
            "model": name,
            "results": results,
            "usage": {"prompt_tokens": count, "total_tokens": count},
            "meta": {"tokens": {"input_tokens": count}},
        }

    def check_there(self) -> "Reranker":
        """What sorts them."""
        if self._reranker is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "this server has no model that sorts texts: it was started without --rerank-model",
                code="model_not_found",
            )
        return self._reranker


def _result(index: int, score: float, text: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    return result if text is None else result | {"document": {"text": text}}
