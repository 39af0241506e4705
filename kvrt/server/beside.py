"""Models beside the one that answers."""

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvrt.server.errors import Refusal

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder
    from kvrt.embedding.reranker import Reranker
    from kvrt.speech.transcriber import Transcriber


class Beside(NamedTuple):
    """What else a server has.

    Args:
        embedder: makes vectors of texts; None: nothing does.
        reranker: sorts texts; None: nothing does.
        transcriber: writes what is said; None: nothing does.
    """

    embedder: "Embedder | None" = None
    reranker: "Reranker | None" = None
    transcriber: "Transcriber | None" = None


def check_name(own: str, named: str, does: str, *, any_name: bool) -> str:
    """The name of the model that is asked: the one that is named, or its own if none is.

    Args:
        own: the model's name, or its folder.
        named: by the request.
        does: what the server does with it.
        any_name: every name is the model's.

    Raises:
        Refusal: the request names another.
    """
    short = Path(own).expanduser().name
    if named and named not in (short, own) and not any_name:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"no such model; this server {does} with {short}",
            param="model",
            code="model_not_found",
        )
    return named or short
