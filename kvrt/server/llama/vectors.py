"""``/embedding`` and ``/rerank`` as llama-server answers there."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal, refusal_of
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.rerank import MAX_TEXTS, Rerank
from kvrt.server.tenants.accounts import Accounts, Visit
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import decode

Of = Callable[[bytes], Awaitable[tuple[Any, int]]]
"""From a request's body to its answer, and the tokens that it took."""


class VectorsAsked(msgspec.Struct):
    """`content` is an older name of `input`, whose answers are always llama-server's own."""

    input: Any = None
    content: Any = None
    encoding_format: str = "float"
    embd_normalize: int = 2
    model: str = ""


class RankAsked(msgspec.Struct):
    """`texts` stands for `documents` in the words of text-embeddings-inference."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str], Meta(max_length=MAX_TEXTS)] = msgspec.field(
        default_factory=list
    )
    texts: Annotated[list[str], Meta(max_length=MAX_TEXTS)] | None = None
    top_n: int | None = None
    return_text: bool = False
    model: str = ""


class Vectors:
    """The routes.

    Args:
        accounts: whom they count for.
        embeddings: makes vectors.
        rerank: sorts texts.
    """

    def __init__(self, accounts: Accounts, embeddings: Embeddings, rerank: Rerank) -> None:
        self._accounts = accounts
        self._embeddings = embeddings
        self._rerank = rerank

    def native(self, route: str) -> Callable[[Request], Awaitable[Response]]:
        """The handler of ``/embedding``: a list, with a list of one vector for each text."""
        return self._handler(route, self._native)

    def openai(self, route: str) -> Callable[[Request], Awaitable[Response]]:
        """Of ``/v1/embeddings``."""
        return self._handler(route, self._openai)

    def ranked(self, route: str) -> Callable[[Request], Awaitable[Response]]:
        """Of ``/rerank``."""
        return self._handler(route, self._ranked)

    def _handler(self, route: str, of: Of) -> Callable[[Request], Awaitable[Response]]:
        async def create(request: Request) -> Response:
            entry = entry_of(request.scope)
            assert entry.owner is not None, "nobody else gets here"
            body = await read_body(request.scope, request.receive, self._embeddings.max_body)
            with self._accounts.visit(entry.owner, route, entry.id) as visit:
                return answer(await _counted(visit, of, body))

        return create

    async def _native(self, body: bytes) -> tuple[Any, int]:
        asked = decode(body, VectorsAsked, strict=False)
        told = await self._made(asked, "float")
        vectors = [{"index": e["index"], "embedding": [e["embedding"]]} for e in told["data"]]
        return vectors, told["usage"]["prompt_tokens"]

    async def _openai(self, body: bytes) -> tuple[Any, int]:
        asked = decode(body, VectorsAsked, strict=False)
        if asked.input is None and asked.content is not None:
            return await self._native(body)
        told = await self._made(asked, asked.encoding_format)
        if asked.encoding_format == "base64":
            for each in told["data"]:
                each["encoding_format"] = "base64"
        return told, told["usage"]["prompt_tokens"]

    async def _made(self, asked: VectorsAsked, form: str) -> dict[str, Any]:
        if self._embeddings.missing:
            why = "this server makes no vectors: start it with --embeddings"
            raise Refusal(HTTPStatus.NOT_IMPLEMENTED, why)
        texts = asked.input if asked.input is not None else asked.content
        if texts is None or texts in ("", []):
            raise Refusal(400, "give input, or content, that is not empty", param="input")
        if asked.embd_normalize not in (-1, 2):
            raise Refusal(400, "embd_normalize is 2, the length 1, or -1", param="embd_normalize")
        fields = {"input": texts, "encoding_format": form}
        told = await self._embeddings.of(msgspec.json.encode(fields))
        return told | ({"model": asked.model} if asked.model else {})

    async def _ranked(self, body: bytes) -> tuple[Any, int]:
        if self._rerank.missing:
            why = "this server sorts no texts: start it with --reranking"
            raise Refusal(HTTPStatus.NOT_IMPLEMENTED, why)
        asked = decode(body, RankAsked, strict=False)
        texts = asked.documents if asked.texts is None else asked.texts
        if not texts:
            raise Refusal(400, "documents is a list of at least one text", param="documents")
        fields: dict[str, Any] = {"query": asked.query, "documents": texts}
        if asked.top_n is not None:
            fields["top_n"] = max(1, asked.top_n)
        told = await self._rerank.of(msgspec.json.encode(fields))
        count = told["usage"]["prompt_tokens"]
        if asked.texts is None:
            name = asked.model or told["model"]
            kept = {"results": told["results"], "usage": told["usage"]}
            return {"model": name, "object": "list", **kept}, count
        results = []
        for each in told["results"]:
            one = {"index": each["index"], "score": each["relevance_score"]}
            results.append(one | ({"text": texts[one["index"]]} if asked.return_text else {}))
        return results, count


async def _counted(visit: Visit, of: Of, body: bytes) -> Any:
    if visit.reserves:
        visit.reserve(len(body))
    try:
        told, tokens = await of(body)
    except Exception as error:
        visit.status = refusal_of(error).status
        raise
    visit.status = 200
    visit.took(tokens, 0, 0)
    return told
