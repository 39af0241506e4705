"""Models beside the one that answers, on its device."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvrt.config import RuntimeConfig

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder
    from kvrt.server.beside import Beside
    from kvrt.server.config import ServerConfig


@contextlib.contextmanager
def open_beside(server: "ServerConfig", config: RuntimeConfig) -> "Iterator[Beside]":
    """Those that a server is to have; closed in the end.

    Args:
        config: of the model that answers.
    """
    from kvrt.server.beside import Beside

    embedder = reranker = transcriber = None
    with contextlib.ExitStack() as opened:
        if server.embed_model is not None:
            embedder = opened.enter_context(open_embedder(server.embed_model, config))
        if server.rerank_model is not None:
            from kvrt.embedding.reranker import Reranker

            reranker = opened.enter_context(Reranker(server.rerank_model, **same_device(config)))
        if server.speech_model is not None:
            from kvrt.speech.transcriber import Transcriber

            transcriber = opened.enter_context(
                Transcriber(server.speech_model, **same_device(config))
            )
        yield Beside(embedder, reranker, transcriber)


def open_embedder(model: str, config: RuntimeConfig) -> "Embedder":
    """What makes vectors of texts."""
    from kvrt.embedding.embedder import Embedder

    return Embedder(model, **same_device(config))


def same_device(config: RuntimeConfig) -> dict[str, Any]:
    """Options of a model beside another."""
    return {name: getattr(config, name) for name in ("backend", "device", "threads", "offline")}
