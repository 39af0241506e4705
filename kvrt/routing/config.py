"""How a router is set up."""

from dataclasses import dataclass
from pathlib import Path

from kvrt.checks import (
    Checks,
    Flag,
    Folder,
    Maybe,
    Number,
    OneOf,
    Text,
    Texts,
    Whole,
    check_options,
)
from kvrt.errors import ConfigError
from kvrt.integrations.choosing import POLICIES, Policy
from kvrt.net.address import is_loopback
from kvrt.routing.replicas import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Checked when made: a bad value is a `ConfigError`.

    Args:
        servers: addresses, as `Address.read` takes them. There may be none at first.
        prefill: addresses of servers that compute prompts for the others.
        host: address to listen at.
        port: 0: any that is free.
        policy: see `kvrt.integrations.choosing.choose`.
        keys: a file of keys, of which clients need one. The servers get it, too.
        without_keys: listen at an address that others reach, although there are no keys.
        max_requests: that may be on their way at once; more are refused for now.
        max_body: bytes of a request's body.
        answer_seconds: a request of whose answer nothing came for so long is given up.
        drain_seconds: at the end, answers may go on for so long.
    """

    servers: tuple[str, ...] = ()
    prefill: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    policy: Policy = "prefix"
    keys: Path | None = None
    without_keys: bool = False
    max_requests: int = 1024
    max_body: int = 16 << 20
    answer_seconds: float = 600.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in OPTIONS}
        for name, value in check_options(OPTIONS, **given).items():
            object.__setattr__(self, name, value)
        if self.keys is None and not self.without_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host:.60}, which others reach, and no keys are asked for",
                fix="give keys with --keys FILE, or say --without-keys if something else guards it",
            )
        urls = [address.url for address in (*self.addresses, *self.prefill_addresses)]
        if len({*urls}) < len(urls):
            raise ConfigError("a server is named twice")

    @property
    def addresses(self) -> list[Address]:
        return [Address.read(text) for text in self.servers]

    @property
    def prefill_addresses(self) -> list[Address]:
        return [Address.read(text) for text in self.prefill]


OPTIONS: Checks = {
    "servers": Texts(1024, 4096),
    "prefill": Texts(1024, 4096),
    "host": Text(253),
    "port": Whole(0, 65535),
    "policy": OneOf(POLICIES),
    "keys": Maybe(Folder()),
    "without_keys": Flag(),
    "max_requests": Whole(1, 100_000),
    "max_body": Whole(1024, 2**31 - 1),
    "answer_seconds": Number(0, 86_400, above=True),
    "drain_seconds": Number(0, 86_400),
}
"""Of each field, what it may be."""
