"""What whoever is in charge of a workspace may do in it: end requests, have keys come and go.

An admin in a workspace has that one in his charge, an admin in none has all. Keys are lines of the
server's file of keys, which it reads again at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.errors import ConfigError
from kvrt.server.access.keys import NAME, Keys, Owner, add_key, drop_key
from kvrt.server.access.limits import UNLIMITED, Limits
from kvrt.server.desk import Desk
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import decode

Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 64 << 10

KeyName = Annotated[str, Meta(pattern=f"^{NAME}$")]


class KeyRequest(msgspec.Struct, kw_only=True):
    """A key that is wanted.

    Args:
        workspace: that it is to be in; None: the asking key's own, or none.
        limits: as of a line of the file of keys.
    """

    name: KeyName
    role: Literal["user", "admin", "metrics"] = "user"
    workspace: KeyName | None = None
    limits: Annotated[dict[str, Annotated[int, Meta(ge=1)]], Meta(max_length=16)] | None = None


class Steering:
    """The routes. Belongs to the event loop.

    Args:
        desk: of the server.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._writing = asyncio.Lock()

    @property
    def gets(self) -> Mapping[str, Handler]:
        """By path."""
        return {"/keys": self.list}

    @property
    def posts(self) -> Mapping[str, Handler]:
        """By path."""
        return {"/keys": self.create}

    @property
    def deletes(self) -> Mapping[str, Handler]:
        """By path."""
        return {"/keys/{name}": self.delete, "/requests/{id}": self.end}

    async def end(self, request: Request) -> Response:
        """End the requests of this id that are the asking key's, or of a workspace in its charge;
        their clients are told."""
        asking, id = _asking(request), request.path_params["id"]
        ended = [
            entry
            for entry in self._desk.book.open
            if entry.id == id and _may_end(asking, entry.owner) and entry.stop()
        ]
        if not ended:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such request goes on", code="no_request")
        return answer({"id": id, "ended": len(ended)})

    # --- keys --------------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        """Never the keys themselves, nor their hashes."""
        asking, keys = _in_charge(request), self._keys()
        found = [_shown(each) for each in keys.owners if _rules_over(asking, each)]
        return answer({"object": "list", "data": found})

    async def create(self, request: Request) -> Response:
        """The one answer that has the key."""
        asking, keys = _in_charge(request), self._keys()
        body = await read_body(request.scope, request.receive, MAX_BODY)
        asked = decode(body, KeyRequest, strict=self._desk.config.strict)
        wanted = self._wanted(asking, asked)
        async with self._writing:
            if any(wanted.name == each.name for each in keys.owners):
                raise Refusal(HTTPStatus.CONFLICT, "name: another key has it", param="name")
            made = await self._written(
                add_key, keys.path, wanted.name, wanted.role, wanted.limits, wanted.workspace
            )
            await asyncio.to_thread(keys.look)
        return answer({**_shown(wanted), "key": made}, HTTPStatus.CREATED)

    async def delete(self, request: Request) -> Response:
        """It is taken no more; what it has asked is answered."""
        asking, keys = _in_charge(request), self._keys()
        name = request.path_params["name"]
        if name == asking.name:
            raise Refusal(HTTPStatus.CONFLICT, "a key cannot delete itself")
        async with self._writing:
            workspace = None if asking.rules else asking.workspace
            dropped = await self._written(drop_key, keys.path, name, workspace)
            await asyncio.to_thread(keys.look)
        if not dropped:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such key", code="no_key")
        return answer({"name": name, "object": "key", "deleted": True})

    def _keys(self) -> Keys:
        if (keys := self._desk.accounts.keys) is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "this server has no file of keys", code="no_keys")
        return keys

    def _wanted(self, asking: Owner, asked: KeyRequest) -> Owner:
        """Whose the new key is to be.

        Raises:
            Refusal: it would be more than who asks may give.
        """
        workspace = asked.workspace or asking.workspace
        name = f"{asked.name}@{workspace}" if workspace else asked.name
        try:
            limits = Limits.read(tuple(f"{k}={v}" for k, v in (asked.limits or {}).items()))
        except ConfigError as error:
            raise Refusal(400, f"limits: {error}", param="limits") from None
        if limits.lasting and self._desk.config.usage is None:
            raise Refusal(400, "limits: those of days and months need --usage", param="limits")
        if not asking.rules:
            if workspace != asking.workspace:
                raise _forbidden("workspace", "that is not this key's")
            if asked.role == "metrics":
                raise _forbidden("role", "metrics tell of every workspace")
            self._check_limits(limits)
        if asked.role == "metrics" and workspace:
            raise Refusal(400, "role: metrics tell of every workspace", param="role")
        return Owner(name, asked.role, limits, workspace)

    def _check_limits(self, limits: Limits) -> None:
        """Within what each key has whose line says nothing."""
        if not limits:
            return
        most = Limits.read(self._desk.config.limits)
        for each in fields(Limits):
            given, allowed = getattr(limits, each.name), getattr(most, each.name)
            if allowed is not None and (given is None or given > allowed):
                raise _forbidden("limits", f"{each.name} has to be {allowed} or less")

    async def _written(self, write: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(write, *args)
        except ConfigError as error:
            raise Refusal(400, f"name: {error}", param="name") from None


def _asking(request: Request) -> Owner:
    owner = entry_of(request.scope).owner
    assert owner is not None, "nobody else gets here"
    return owner


def _in_charge(request: Request) -> Owner:
    owner = _asking(request)
    if owner.role != "admin":
        raise Refusal(HTTPStatus.FORBIDDEN, f"a key of role {owner.role} is not for this")
    return owner


def _rules_over(asking: Owner, owner: Owner) -> bool:
    """Whether a key is in one's charge."""
    return asking.rules or owner.workspace == asking.workspace


def _may_end(asking: Owner, owner: Owner | None) -> bool:
    if owner is None:
        return False
    return (asking.name, asking.tenant) == (owner.name, owner.tenant) or asking.sees(owner.tenant)


def _shown(owner: Owner) -> dict[str, Any]:
    limits = {} if owner.limits == UNLIMITED else asdict(owner.limits)
    return {
        "object": "key",
        "name": owner.name,
        "role": owner.role,
        "workspace": owner.workspace or None,
        "limits": {name: value for name, value in limits.items() if value is not None},
    }


def _forbidden(field: str, why: str) -> Refusal:
    return Refusal(HTTPStatus.FORBIDDEN, f"{field}: {why}", param=field)
