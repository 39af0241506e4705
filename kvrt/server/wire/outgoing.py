"""Connections that the server makes: to where its configuration says, and nowhere else."""

import urllib.request
from typing import Any
from urllib.parse import urlsplit

from kvrt.net.address import is_loopback

TIMEOUT_S = 10.0
LARGEST = 1 << 20
"""Bytes of an answer that are read."""


def is_private(url: str) -> bool:
    """Whether nobody on the way can read or change what goes there."""
    parts = urlsplit(url)
    here = parts.scheme == "http" and is_loopback(parts.hostname or "")
    return bool(parts.hostname) and (parts.scheme == "https" or here)


def fetch(asked: str | urllib.request.Request) -> bytes:
    """The answer to a request; one that leads elsewhere is an error.

    Raises:
        OSError: there is none, or it is none of success.
    """
    opener = urllib.request.build_opener(_Straight)
    with opener.open(asked, timeout=TIMEOUT_S) as answer:
        read: bytes = answer.read(LARGEST)
    return read


class _Straight(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else than to where it was sent."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None
