"""The routes of llama-server, beside those that there are anyway."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from kvrt.server import page
from kvrt.server.access.guard import OPEN
from kvrt.server.anthropic.messages import MessagesApi
from kvrt.server.app import Handler, application, routes_of
from kvrt.server.beside import Beside
from kvrt.server.desk import Desk
from kvrt.server.errors import Refusal
from kvrt.server.llama.about import About, listed, props
from kvrt.server.llama.chat import LlamaChat
from kvrt.server.llama.completion import CompletionCall, Completions, TextCall
from kvrt.server.llama.endpoint import SeatedEndpoint
from kvrt.server.llama.front import Front
from kvrt.server.llama.infill import Infill
from kvrt.server.llama.settings import Face
from kvrt.server.llama.texts import Texts
from kvrt.server.llama.vectors import Vectors
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.openai.responses import Responses
from kvrt.server.rerank import Rerank
from kvrt.server.wire.answers import answer
from kvrt.server.words.protocol import Api

UNGUARDED = OPEN | {"/v1/health"}
"""Routes that need no key."""

ANSWERS = ("/completion", "/completions", "/v1/completions", "/chat/completions",
           "/v1/chat/completions", "/v1/responses", "/v1/messages", "/infill", "/tokenize",
           "/detokenize", "/apply-template")  # fmt: skip
"""Routes of a model that answers, which a server of vectors does not have."""


def make_llama_app(front: Front) -> Starlette:
    """Everything that is served with a model that answers."""
    served, service = front.served, front.service
    about, chat = About(front), LlamaChat(front)
    texts = Texts(front, chat)
    usual = routes_of(service)
    gets: dict[str, Handler] = {
        **usual.gets,
        "/health": about.health,
        "/v1/health": about.health,
        "/v1/models": about.models,
        "/v1/models/{name:path}": about.model,
        "/props": about.props,
        "/slots": about.slots,
        "/lora-adapters": about.lora,
        "/metrics": about.metrics,
    }
    if not front.face.page:
        gets = {path: handler for path, handler in gets.items() if path not in page.FILES}
    posts: dict[str, Handler] = {
        **usual.posts,
        "/props": about.set_props,
        "/slots/{id}": about.act_on_slot,
        "/lora-adapters": about.set_lora,
        "/tokenize": texts.tokenize,
        "/detokenize": texts.detokenize,
        "/apply-template": texts.apply_template,
        "/chat/completions/input_tokens": texts.input_tokens,
        "/v1/chat/completions/input_tokens": texts.input_tokens,
        **_of_vectors(Vectors(service.accounts, *_beside(Beside()))),
    }
    native = Completions(front, CompletionCall)
    apis: dict[str, Api] = {
        "/completion": native,
        "/completions": native,
        "/v1/completions": Completions(front, TextCall),
        "/v1/chat/completions": chat,
        "/infill": Infill(front),
        "/v1/messages": MessagesApi(served),
        "/v1/responses": Responses(served),
    }
    seated = {path: SeatedEndpoint(front, path, api) for path, api in apis.items()}
    endpoints: dict[str, ASGIApp] = {**usual.endpoints, **seated}
    return application(gets, posts, usual.deletes, endpoints, service.book)


def make_vectors_app(desk: Desk, face: Face, beside: Beside, name: str) -> Starlette:
    """Everything that is served where vectors are made (``--embeddings``) or texts sorted
    (``--reranking``), and no text is answered.

    Args:
        beside: what does it.
        name: of the model, for clients.
    """
    embeddings, rerank = _beside(beside)
    own = props(face, name) | {"modalities": {"vision": False, "video": False, "audio": False}}

    async def health(request: Request) -> Response:
        if desk.gate.closing:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "shutting down")
        return answer({"status": "ok"})

    async def models(request: Request) -> Response:
        text = {"input_modalities": ["text"], "output_modalities": ["text"]}
        data = [{"id": name, "aliases": [name], "tags": [], "object": "model", "created": 0,
                 "architecture": text, "owned_by": "llamacpp", "meta": None}]  # fmt: skip
        return answer({"models": [listed(name)], "object": "list", "data": data})

    async def tell(request: Request) -> Response:
        return answer(own)

    async def absent(request: Request) -> Response:
        why = "this server makes vectors or sorts texts: start it without --embeddings, --reranking"
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, why)

    gets: dict[str, Handler] = {
        "/health": health,
        "/v1/health": health,
        "/livez": health,
        "/v1/models": models,
        "/props": tell,
    }
    posts: dict[str, Handler] = {
        **dict.fromkeys(ANSWERS, absent),
        **_of_vectors(Vectors(desk.accounts, embeddings, rerank)),
    }
    return application(gets, posts, {}, {}, desk.book)


def _beside(beside: Beside) -> tuple[Embeddings, Rerank]:
    names = {"strict": False, "any_name": True}
    return Embeddings(beside.embedder, **names), Rerank(beside.reranker, **names)


def _of_vectors(vectors: Vectors) -> dict[str, Handler]:
    ranked = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
    return {
        "/embedding": vectors.native("/embedding"),
        "/embeddings": vectors.native("/embeddings"),
        "/v1/embeddings": vectors.openai("/v1/embeddings"),
        **{path: vectors.ranked(path) for path in ranked},
    }
