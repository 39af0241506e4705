"""Adapters of the model that is served: to clients, each is a model of its own."""

import asyncio
import itertools
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.errors import CapacityError, ConfigError, ModelError
from kvrt.runtime import Runtime
from kvrt.server.access.admin import needs_admin
from kvrt.server.config import ServerConfig
from kvrt.server.errors import Refusal
from kvrt.server.served import Served
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import Name, decode

MAX_BODY = 64 << 10


class LoadAdapter(msgspec.Struct):
    """What vLLM's route takes."""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]


class UnloadAdapter(msgspec.Struct):
    """Likewise; `lora_int_id` says nothing here."""

    lora_name: Name
    lora_int_id: int | None = None


class Adapters:
    """The routes that load and unload adapters, for admins. Belongs to the event loop.

    Args:
        runtime: which has them.
        served: learns their names; those that are loaded now, too.
        config: of the server.

    Raises:
        ConfigError: one has a name of the model.
    """

    def __init__(self, runtime: Runtime, served: Served, config: ServerConfig) -> None:
        self._runtime = runtime
        self._served = served
        self._revisions = itertools.count(1)
        self._config = config
        for name in runtime.adapters:
            if name in served.names:
                raise ConfigError(f"{name!r} is the model's own name", fix="give --lora another")
            served.adapters[name] = next(self._revisions)

    async def load(self, request: Request) -> Response:
        asked = decode(await self._body(request), LoadAdapter, strict=self._served.strict)
        name = asked.lora_name
        if name in self._served.names or name in self._served.adapters:
            raise Refusal(HTTPStatus.BAD_REQUEST, "a model of that name is there", "lora_name")
        try:
            await asyncio.to_thread(self._runtime.load_adapter, name, Path(asked.lora_path))
        except ConfigError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "lora_name") from None
        except ModelError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), "lora_path") from None
        except CapacityError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), code="no_memory") from None
        self._served.adapters[name] = next(self._revisions)
        return Response("the adapter is loaded", media_type="text/plain")

    async def unload(self, request: Request) -> Response:
        asked = decode(await self._body(request), UnloadAdapter, strict=self._served.strict)
        if self._served.adapters.pop(asked.lora_name, None) is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no adapter of that name is loaded", "lora_name")
        self._runtime.unload_adapter(asked.lora_name)
        return Response("the adapter is unloaded", media_type="text/plain")

    async def _body(self, request: Request) -> bytes:
        needs_admin(request.scope, self._config, "adapters are loaded")
        return await read_body(request.scope, request.receive, MAX_BODY)
