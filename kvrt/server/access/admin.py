"""Routes that change what a server is: for admins alone."""

from http import HTTPStatus

from starlette.types import Scope

from kvrt.net.address import is_loopback
from kvrt.server.config import ServerConfig
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal


def needs_admin(scope: Scope, config: ServerConfig, what: str) -> None:
    """Let admins of the server pass: keys of that role that are in no workspace, or without keys
    whoever is on this machine.

    Args:
        what: is asked for, and how: the beginning of the refusal.

    Raises:
        Refusal: somebody else asks.
    """
    owner = entry_of(scope).owner
    guarded = config.keys is not None or config.jwt_issuer is not None
    if owner is None or not owner.rules or not (guarded or is_loopback(config.host)):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"{what} by a key of role admin that is in no workspace, or without keys from this"
            " machine",
        )
