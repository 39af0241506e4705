"""Routes on vLLM's own server: what its engine holds, and changes of that, through the share.

    GET  /v1/kvrt/memory
    POST /v1/kvrt/limit        {"size": "4GiB", "revision": 7}
    POST /v1/kvrt/guarantee    {"size": "10%"}
    POST /v1/kvrt/reclaim

vLLM asks for its key, if it has one, under ``/v1``, and loads routes of others only where
``VLLM_PLUGINS`` names them. The engine is another process than the server: they meet in the ledger.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from json import JSONDecodeError
from typing import Any

import psutil
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from kvrt.checks import Checks, Maybe, Size, Whole, check_options
from kvrt.errors import CapacityError, ConfigError, KvrtError
from kvrt.integrations.vllm.options import Options
from kvrt.sharing.looking import Seen, ledger_of, shares
from kvrt.sharing.orders import Outcome, Verb, post
from kvrt.units import parse_bytes

PREFIX = "/v1/kvrt"

SIZED = (Verb.LIMIT, Verb.GUARANTEE)
VERBS = (*SIZED, Verb.RECLAIM)

BODY: Checks = {
    "size": Size(),
    "revision": Maybe(Whole(1, 2**62)),
    "process": Maybe(Whole(1, 2**31 - 1)),
}
"""What a change may say; a reclaim has no size."""

ANSWER_S = 10.0
"""An engine answers on a thread of its own, busy or idle."""


class NoEngine(ConfigError):
    """This server has no engine whose memory could be told of."""


class Routes:
    """As vLLM's ``EndpointPlugin``; `kvrt.integrations.vllm.plugin.endpoints` makes one."""

    name = "kvrt"
    required_tasks = None

    def __init__(self) -> None:
        self._share: str | None = None
        self._above = os.getpid()

    def attach_router(self, app: Starlette) -> None:
        """vLLM builds its server."""
        app.add_route(f"{PREFIX}/memory", self._memory, methods=["GET"])
        for verb in VERBS:
            app.add_route(f"{PREFIX}/{verb.name.lower()}", self._changing(verb), methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """The engine runs: on which share, and as whose child. None: vLLM serves without one."""
        if engine_client is not None:
            self._share = share_of(engine_client.vllm_config.kv_transfer_config)
        if (getattr(args, "api_server_count", None) or 1) > 1:  # one process started all of them
            self._above = os.getppid()

    async def _memory(self, request: Request) -> JSONResponse:
        return await _answered(lambda: {"engines": self._engines()})

    def _changing(self, verb: Verb) -> Callable[[Request], Any]:
        async def change(request: Request) -> JSONResponse:
            try:
                given = await request.json() if await request.body() else {}
            except (JSONDecodeError, UnicodeDecodeError):
                given = None
            return await _answered(lambda: self._change(verb, given))

        return change

    def _change(self, verb: Verb, given: object) -> dict[str, Any]:
        body = _checked(verb, given)
        engines = self._engines()
        wanted = body.get("process")
        fitting = [one for one in engines if wanted in (None, one["process"])]
        if len(fitting) != 1:
            there = ", ".join(str(one["process"]) for one in engines)
            raise ConfigError(f"this server has engines {there}", fix="name one as process")
        (engine,) = fitting
        size = 0
        if verb in SIZED:
            asked = body["size"]
            size = asked if isinstance(asked, int) else parse_bytes(asked, whole=engine["size"])
        answer = post(
            ledger_of(engine),
            str(engine["process"]),
            verb,
            size,
            revision=body.get("revision"),
            timeout=ANSWER_S,
        )
        if answer.outcome is Outcome.REFUSED:
            raise CapacityError(answer.text)
        return {"outcome": answer.outcome.name.lower(), "revision": answer.revision}

    def _engines(self) -> list[Seen]:
        """This server's, as ``kvrt top --json`` has them, each with its share."""
        if self._share is None:
            raise NoEngine(
                "this vLLM holds its KV memory on no share",
                fix='give the ElasticConnector a "share": alone on it, it may have all of it',
            )
        found = []
        for share in shares():
            if share["share"] == self._share:
                whole = {name: value for name, value in share.items() if name != "tenants"}
                taken = sum(tenant["held"] for tenant in share["tenants"])
                found += [
                    {**whole, "held_by_all": taken, **tenant}
                    for tenant in share["tenants"]
                    if self._is_ours(tenant["process"])
                ]
        if not found:
            raise NoEngine(f"no engine of this server is on the share {self._share}")
        return found

    def _is_ours(self, process: int) -> bool:
        try:
            above = psutil.Process(process).parents()
        except psutil.Error:  # it has just ended, or is not ours to look at
            return False
        return process == self._above or self._above in (parent.pid for parent in above)


def share_of(config: Any) -> str | None:
    """The share that vLLM's ``kv_transfer_config`` names for kvrt's connector, also within a
    MultiConnector; None: it names none."""
    if config is None:
        return None
    given = config.kv_connector_extra_config
    every = [{"kv_connector": config.kv_connector, "kv_connector_extra_config": given}]
    for one in every + list(given.get("connectors", ())):
        if one["kv_connector"] == "ElasticConnector":
            share = Options.read(one.get("kv_connector_extra_config", {})).share
            return None if share is None else share.name
    return None


def _checked(verb: Verb, given: object) -> dict[str, Any]:
    fields = [name for name in BODY if name != "size" or verb in SIZED]
    if not isinstance(given, Mapping):
        raise ConfigError("the body is no JSON object", fix=f"it may have {', '.join(fields)}")
    if unknown := [str(name) for name in given if name not in fields]:
        raise ConfigError(
            f"{verb.name.lower()} takes no {', '.join(unknown)}",
            fix=f"it takes {', '.join(fields)}",
        )
    if verb in SIZED and "size" not in given:
        raise ConfigError(
            f"{verb.name.lower()} needs a size", fix='such as {"size": "4GiB"}, or bytes'
        )
    return check_options(BODY, **given)


async def _answered(ask: Callable[[], dict[str, Any]]) -> JSONResponse:
    """What came of it; the ledger's lock and the engine are waited for on another thread."""
    try:
        return JSONResponse(await run_in_threadpool(ask))
    except NoEngine as error:
        return _refused(404, error)
    except ConfigError as error:
        return _refused(400, error)
    except CapacityError as error:
        return _refused(409, error)
    except KvrtError as error:
        return _refused(503, error)


def _refused(status: int, error: KvrtError) -> JSONResponse:
    """As vLLM's own errors look."""
    message = f"{error}: {error.fix}" if error.fix else str(error)
    told = {"message": message, "type": type(error).__name__, "param": None, "code": status}
    return JSONResponse({"error": told}, status_code=status)
