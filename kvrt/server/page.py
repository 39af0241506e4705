"""The web page: static files, under a policy that lets nothing else in."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
FILES = {
    "/" if path.name == "index.html" else f"/{path.name}": (path.name, KINDS[path.suffix])
    for path in sorted(FOLDER.iterdir())
}
"""By their paths: the file, and what it is."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src"
    " 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Nothing is loaded from elsewhere, nothing that a model says is run, no other page frames this
one."""


def handler(path: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers at one of the paths of `FILES`."""
    name, kind = FILES[path]
    body = (FOLDER / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(body, headers=HEADERS, media_type=f"{kind}; charset=utf-8")

    return answer
