"""OpenAI's routes where KServe has them."""

from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/openai"


def without_prefix(app: ASGIApp) -> ASGIApp:
    """An application that takes ``/openai/v1/...`` for ``/v1/...``.

    It stands before everything: who may ask, what is counted and what answers see one path alone,
    so that a route is guarded in one way whichever of its two names it is asked by.

    Args:
        app: the rest, with its guard.
    """

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith(f"{PREFIX}/v1/"):
            scope["path"] = path.removeprefix(PREFIX)
            scope["raw_path"] = quote(scope["path"]).encode()
        await app(scope, receive, send)

    return asked
