"""A router from its start to its end."""

import asyncio
import socket
from collections.abc import Callable

import httpx

from kvrt.routing.app import make_app
from kvrt.routing.config import RouterConfig
from kvrt.routing.forwarding import Forward
from kvrt.routing.replicas import Replicas
from kvrt.server.access.gate import Gate
from kvrt.server.access.guard import Guard
from kvrt.server.access.keys import Keys
from kvrt.server.access.oidc import Credentials
from kvrt.server.entry import Book
from kvrt.server.wire.listener import Listener


async def route(config: RouterConfig, bound: socket.socket, begun: Callable[[], None]) -> None:
    """Send requests on until SIGTERM or SIGINT; answers go on for `drain_seconds` then.

    Args:
        bound: by `kvrt.server.wire.listener.bind`; closed in the end.
        begun: called when clients can connect.

    Raises:
        ConfigError: the keys cannot be read, or what events need is not installed.
    """
    keys = None if config.keys is None else Credentials(Keys(config.keys), None)
    gate = Gate(config.max_requests)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False) as client:
        replicas = Replicas(client, config.policy)
        prefill = Replicas(client, config.policy, prefix="p")
        forward = Forward(
            replicas,
            prefill,
            client,
            gate,
            max_body=config.max_body,
            answer_seconds=config.answer_seconds,
        )
        app = make_app(forward, replicas, prefill, gate)
        listener = Listener(
            Guard(app, Book(), config.host, keys),
            gate,
            drain_seconds=config.drain_seconds,
            max_message=config.max_body,
            begun=begun,
            ending=lambda: None,
            cut=forward.cut_all,
        )
        refreshing = [asyncio.create_task(each.keep_fresh()) for each in (keys.of if keys else ())]
        try:
            for address in config.addresses:
                replicas.add(address)
            for address in config.prefill_addresses:
                prefill.add(address)
            await listener.listen(bound)
        finally:
            for task in refreshing:
                task.cancel()
            replicas.close()
            prefill.close()
            bound.close()
