"""Tells whoever the operator has named that a batch is over, as OpenAI's webhooks do.

Signed as https://www.standardwebhooks.com has it; OpenAI's clients read them by
``client.webhooks.unwrap``.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from kvrt.batches.deliveries import Delivery
from kvrt.batches.store import Store
from kvrt.errors import ConfigError
from kvrt.server.wire.outgoing import fetch, is_private

log = logging.getLogger(__name__)

LOOK_S = 1.0
AT_ONCE = 16
PREFIX = "whsec_"
ONE = "webhooks"
"""Of several servers, the one that has taken this delivers."""


@dataclass(frozen=True, slots=True)
class Hook:
    """Who is told.

    Args:
        url: where events are posted.
        secret: that they are signed with.
    """

    url: str
    secret: bytes

    @classmethod
    def read(cls, url: str, file: Path) -> "Hook":
        """With the secret of a file: ``whsec_`` and base64, or any text.

        Raises:
            ConfigError: it has none, or the URL is none that is private on the way.
        """
        if not is_private(url):
            raise ConfigError(
                "batch_webhook is not an https URL, so anybody on the way could read it",
                fix="give one, or http at this machine",
            )
        try:
            text = file.read_text(encoding="ascii").strip()
            bare = text.removeprefix(PREFIX)
            secret = base64.b64decode(bare, validate=True) if bare != text else text.encode()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file}: the secret of webhooks cannot be read: {type(error).__name__}"
            ) from None
        if not secret:
            raise ConfigError(f"{file} has no secret in it", fix="whsec_ and base64, or any text")
        return cls(url, secret)

    def request(self, delivery: Delivery, now: int) -> urllib.request.Request:
        """What is posted."""
        signed = b"%s.%d.%s" % (delivery.id.encode(), now, delivery.body)
        signature = base64.b64encode(hmac.digest(self.secret, signed, hashlib.sha256)).decode()
        headers = {
            "content-type": "application/json",
            "user-agent": "kvrt",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": f"v1,{signature}",
        }
        return urllib.request.Request(self.url, delivery.body, headers, method="POST")


class Webhooks:
    """Delivers what is due, until it is cancelled.

    Args:
        store: has it.
    """

    def __init__(self, store: Store, hook: Hook) -> None:
        self._store = store
        self._hook = hook

    async def deliver(self) -> None:
        deliveries = self._store.deliveries
        while True:
            try:
                if await self._store.do(self._store.database.take, ONE):
                    for each in await self._store.do(deliveries.due, AT_ONCE):
                        await self._try(each)
            except OSError as error:
                log.warning("webhooks cannot be kept now: %s", type(error).__name__)
            await asyncio.sleep(LOOK_S)

    async def _try(self, delivery: Delivery) -> None:
        """One try; what is told twice, because its end was not kept, has the same id."""
        deliveries = self._store.deliveries
        request = self._hook.request(delivery, int(time.time()))
        try:
            await asyncio.to_thread(fetch, request)
        except (OSError, ValueError) as error:
            dead = await self._store.do(deliveries.failed, delivery)
            why = getattr(error, "code", None) or type(error).__name__
            log.warning("webhook %s was not taken (%s)%s", delivery.id, why, ": dead" * dead)
        else:
            await self._store.do(deliveries.delivered, delivery)
