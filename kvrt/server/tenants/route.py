"""``/usage``: what was taken, and what may be: of a key's own workspace, to who rules of all."""

import asyncio
import contextlib
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.tenants.accounts import Accounts
from kvrt.server.tenants.ledger import Wanted, read_only
from kvrt.server.tenants.reports import Detail, Row, as_csv, is_day, rows
from kvrt.server.wire.answers import answer

MOST = 10_000
"""Rows of one answer."""

NAMES = frozenset({"since", "until", "workspace", "after", "limit", "detail", "format"})
FORMATS = ("json", "csv")


class Usage:
    """The route.

    Args:
        accounts: know what is left.
        path: the ledger; None: nothing is kept.
    """

    def __init__(self, accounts: Accounts, path: Path | None) -> None:
        self._accounts = accounts
        self._path = path

    async def usage(self, request: Request) -> Response:
        owner = entry_of(request.scope).owner
        assert owner is not None, "nobody else gets here"
        query = request.query_params
        if unknown := query.keys() - NAMES:
            raise Refusal(400, f"{len(unknown)} parameters are none of {', '.join(sorted(NAMES))}")
        detail: Detail = _one_of(query.get("detail", "days"), get_args(Detail), "detail")
        kind = _one_of(query.get("format", "json"), FORMATS, "format")
        workspace = query.get("workspace")
        if not owner.rules:
            if workspace not in (None, owner.tenant):
                raise Refusal(HTTPStatus.FORBIDDEN, "that is not this key's workspace", "workspace")
            workspace = owner.tenant
        limit = _number(query.get("limit"), "limit", MOST, MOST)
        wanted = Wanted(
            _day(query.get("since"), "since"),
            _day(query.get("until"), "until"),
            workspace,
            _number(query.get("after"), "after", 2**62, 0),
            limit + 1,
        )
        found = await asyncio.to_thread(self._read, detail, wanted)
        if kind == "csv":
            text = "".join(as_csv(detail, found[:limit]))
            return Response(text, media_type="text/csv; charset=utf-8")
        return answer(
            {
                "object": "list",
                "data": found[:limit],
                "has_more": len(found) > limit,
                "kept": self._path is not None,
                "quotas": self._accounts.left(owner),
            }
        )

    def _read(self, detail: Detail, wanted: Wanted) -> list[Row]:
        if self._path is None:
            return []
        with contextlib.closing(read_only(self._path)) as sql:
            return list(rows(sql, detail, wanted))


def _one_of(given: str, known: tuple[Any, ...], name: str) -> Any:
    if given not in known:
        raise Refusal(400, f"{name} is none of {', '.join(known)}", name)
    return given


def _day(given: str | None, name: str) -> str | None:
    if given is not None and not is_day(given):
        raise Refusal(400, f"{name} is a day such as 2026-11-27", name)
    return given


def _number(given: str | None, name: str, most: int, default: int) -> int:
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or int(given[:20]) > most:
        raise Refusal(400, f"{name} is a number up to {most}", name)
    return int(given)
