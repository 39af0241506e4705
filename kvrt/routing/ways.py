"""Requests on their way to servers and back, and streams that move from one server to another."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from starlette.types import Scope, Send

from kvrt.integrations.prefixes import Key, keys_of
from kvrt.routing.replicas import Replica
from kvrt.server.moving import MARK, MOVES, Told, told_in

MOVABLE = frozenset(
    {"/v1/completions", "/completions", "/v1/chat/completions", "/chat/completions", "/v1/messages"}
)
"""Whose streams may go on at another server."""

EVENT_END = b"\n\n"
MOST_EVENT = 16 << 20
"""Bytes of an event: what has more is passed on as it comes."""


class Prompt:
    """The prompts of a request, and the pages they are made of.

    Args:
        tokens: of all.
        whose: who may share their pages.
    """

    def __init__(self, tokens: Sequence[int], whose: bytes) -> None:
        self.tokens = tokens
        self._whose = whose
        self._keys = cache(partial(keys_of, tokens))

    def told(self, replica: Replica) -> Sequence[Key]:
        """The pages, by the names that they are told of and remembered by."""
        size = replica.prefixes.page_size
        return self._keys(size, self._whose) if size else ()


@dataclass(slots=True, eq=False)
class Way:
    """A request on its way to a server, and back.

    Args:
        scope: of it.
        send: to its client.
        body: as its client sent it.
        prompt: what is known of its prompts.
        replica: that answers.
        ticket: of its stream, which moves it; None: it does not move.
    """

    scope: Scope
    send: Send
    body: bytes
    prompt: Prompt
    replica: Replica
    ticket: str | None = None


class Events:
    """A stream's events as they come, and what the last of them says if it has moved."""

    def __init__(self) -> None:
        self.rest = b""
        """Of an event whose end has not come."""
        self.told: Told | None = None

    def push(self, piece: bytes) -> bytes:
        """What can be passed on."""
        whole, end, self.rest = (self.rest + piece).rpartition(EVENT_END)
        if not end and len(self.rest) > MOST_EVENT:
            whole, self.rest = self.rest, b""
        passed = whole + end
        if passed.startswith(MARK):
            at = 0
        elif (found := passed.find(EVENT_END + MARK)) >= 0:
            at = found + len(EVENT_END)
        else:
            return passed
        self.told = told_in(passed[at:].removesuffix(EVENT_END))
        return passed[:at]


def ticket_for(scope: Scope) -> str | None:
    """For a stream that may have to move; None: it will not."""
    return secrets.token_hex(16) if scope["path"] in MOVABLE else None


def moves_of(way: Way) -> dict[str, str]:
    return {} if way.ticket is None else {MOVES: way.ticket}
