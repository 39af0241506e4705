"""``POST /profile``: a trace of what the engine does in the seconds to come, for admins.

The answer comes when they have passed, or when somebody asks for ``DELETE /profile``; a client that
leaves ends it, too. One is made at a time: each phase of a step is looked at meanwhile.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.profiling.chrome import chrome
from kvrt.profiling.recorder import Recorder
from kvrt.profiling.told import told
from kvrt.profiling.totals import Limits, Work
from kvrt.runtime import Runtime
from kvrt.server.access.admin import needs_admin
from kvrt.server.config import ServerConfig
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body, until_gone
from kvrt.server.words.fields import Name, decode

MAX_BODY = 4 << 10
MOST = 20_000
"""Steps, and changes of requests: some 50 MB in the answer."""


class ProfileRequest(msgspec.Struct):
    """What is wanted.

    Args:
        seconds: how long.
        model: which of those that are loaded; None: there is one.
    """

    seconds: Annotated[float, Meta(gt=0, le=60)] = 5.0
    model: Name | None = None


class Profile:
    """Both routes. Belongs to the event loop.

    Args:
        runtimes: of the models that are loaded, by all of their names.
    """

    def __init__(self, config: ServerConfig, runtimes: Callable[[], Mapping[str, Runtime]]) -> None:
        self._config = config
        self._runtimes = runtimes
        self._ending: threading.Event | None = None

    async def record(self, request: Request) -> Response:
        needs_admin(request.scope, self._config, "a profile is made")
        body = await read_body(request.scope, request.receive, MAX_BODY)
        asked = decode(body or b"{}", ProfileRequest, strict=True)
        if self._ending is not None:
            raise Refusal(HTTPStatus.CONFLICT, "a profile is being made; DELETE /profile ends it")
        runtime = self._runtime(asked.model)
        ending = self._ending = threading.Event()
        gone = asyncio.create_task(until_gone(request.receive))
        gone.add_done_callback(lambda _: ending.set())
        try:
            found = await asyncio.to_thread(_recorded, runtime, asked.seconds, ending)
        finally:
            self._ending = None
            gone.cancel()
        return Response(found, media_type="application/json")

    async def end(self, request: Request) -> Response:
        needs_admin(request.scope, self._config, "a profile is ended")
        if self._ending is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no profile is being made")
        self._ending.set()
        return answer({"ended": True})

    def _runtime(self, name: str | None) -> Runtime:
        loaded = self._runtimes()
        if name is None and len(set(map(id, loaded.values()))) == 1:
            return next(iter(loaded.values()))
        if name is None or name not in loaded:
            names = ", ".join(sorted(loaded)) or "none"
            raise Refusal(HTTPStatus.BAD_REQUEST, f"loaded are: {names}; say which", "model")
        return loaded[name]


def _recorded(runtime: Runtime, seconds: float, ending: threading.Event) -> bytes:
    """In a thread of its own, as JSON: what `kvrt.profiling.told.told` tells, and the trace."""
    with Recorder(runtime, MOST) as recorder:
        ending.wait(seconds)
    recording, limit = recorder.recording, runtime.stats().cache.limit_bytes
    found = told(recording, Work.of(runtime), Limits(), limit)
    return msgspec.json.encode({**found, "trace": chrome(recording)})
