"""Keys that the command line gives, as llama-server takes them."""

import hashlib
import hmac
from collections.abc import Sequence

from kvrt.errors import ConfigError
from kvrt.server.access.keys import Owner
from kvrt.server.access.oidc import Credentials

LONGEST = 4096


class GivenKeys(Credentials):
    """Each is an owner by itself, who may do all that there is to do.

    Args:
        keys: in clear; their hashes alone are kept.

    Raises:
        ConfigError: one is empty, or too long for a header.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(None, None)
        if not keys or not all(0 < len(key) <= LONGEST and key.isprintable() for key in keys):
            raise ConfigError("a key is a text of 1 to 4096 characters", fix="give --api-key KEY")
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def owner(self, given: Sequence[str]) -> Owner | None:
        """Whose key a request brings; None: nobody's, or it brings several different ones."""
        if len(set(given)) != 1:
            return None
        hashed = hashlib.sha256(given[0].encode("utf-8", "surrogateescape")).digest()
        found = None
        for number, known in enumerate(self._hashes):  # all, so that the time tells nothing
            if hmac.compare_digest(known, hashed):
                found = Owner(f"api-key-{number + 1}", "admin")
        return found
