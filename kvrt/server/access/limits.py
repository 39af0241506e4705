"""How much each key or workspace may ask for: requests and tokens a minute, and calls at once; and
what else it may be held to: see `kvrt.server.tenants`.

Each allowance is a bucket that holds a minute's worth and fills evenly. What an answer will take is
not known when it is asked for, so tokens are taken when it has ended, and the bucket may be in
debt then: the next call has to wait until that is paid.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http import HTTPStatus
from time import monotonic

from kvrt.errors import ConfigError
from kvrt.server.errors import Refusal

MINUTE_S = 60.0
PERIODS = ("daily", "monthly")
MEASURES = ("requests", "tokens")
LARGEST = 10**12
IDLE_OWNERS = 10_000
"""More than so many owners who are owed nothing are forgotten."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one owner; None: no limit.

    Args:
        requests: calls a minute.
        tokens: of prompts and answers, a minute.
        concurrent: calls at once.
        daily_requests, daily_tokens, monthly_requests, monthly_tokens: likewise, in a day and in a
            month of UTC.
    """

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None
    daily_requests: int | None = None
    daily_tokens: int | None = None
    monthly_requests: int | None = None
    monthly_tokens: int | None = None

    @classmethod
    def read(cls, words: tuple[str, ...]) -> "Limits":
        """From ``requests=60 tokens=10000 concurrent=4``, of which each may be missing.

        Raises:
            ConfigError: a word is none of these.
        """
        found: dict[str, int] = {}
        names = [each.name for each in fields(cls)]
        for word in words:
            name, _, number = word.partition("=")
            known = name in names and name not in found
            if not known or not number.isascii() or not number.isdigit():
                raise ConfigError(
                    "a limit is not NAME=NUMBER", fix=f"NAME is one of {', '.join(names)}, once"
                )
            found[name] = int(number[:20])
            if not 1 <= found[name] <= LARGEST:
                raise ConfigError(f"the limit {name} is not from 1 to {LARGEST}")
        return cls(**found)

    def __bool__(self) -> bool:
        return self != UNLIMITED

    @property
    def lasting(self) -> bool:
        """Whether what was taken must be known after a restart, too."""
        given = (getattr(self, f"{period}_{what}") for period in PERIODS for what in MEASURES)
        return any(limit is not None for limit in given)

    def __str__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return " ".join(f"{name}={value}" for name, value in given.items() if value is not None)


UNLIMITED = Limits()


class _Bucket:
    """An allowance: `rate` a minute, and at most so much at once."""

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.level = float(rate)
        self._then = now

    def fill(self, now: float) -> None:
        grown = self.level + (now - self._then) * self.rate / MINUTE_S
        self.level, self._then = min(grown, float(self.rate)), now

    def seconds_until(self, level: float) -> float:
        return max(0.0, level - self.level) * MINUTE_S / self.rate


class Quota:
    """What one owner has left. Belongs to the event loop."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._inside = 0
        given = {"requests": limits.requests, "tokens": limits.tokens}
        self._buckets = {
            name: _Bucket(rate, clock()) for name, rate in given.items() if rate is not None
        }

    @contextmanager
    def enter(self) -> Iterator[None]:
        """A call.

        Raises:
            Refusal: not now, and when.
        """
        self._fill()
        most = self.limits.concurrent
        if most is not None and self._inside >= most:
            raise _too_much("concurrent", f"of {most} calls at once, all go on", 1)
        for name, bucket in self._buckets.items():
            if wait := bucket.seconds_until(1.0):
                raise _too_much(name, f"{bucket.rate} {name} a minute are used up", wait)
        if "requests" in self._buckets:
            self._buckets["requests"].level -= 1
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def spend(self, tokens: int) -> None:
        """So many were computed for this owner."""
        if "tokens" in self._buckets:
            self._fill()
            self._buckets["tokens"].level -= tokens

    @property
    def headers(self) -> Mapping[str, str]:
        """What is left, as OpenAI's clients read it."""
        self._fill()
        found = {}
        for name, bucket in self._buckets.items():
            found[f"x-ratelimit-limit-{name}"] = str(bucket.rate)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
            full = bucket.seconds_until(bucket.rate)
            found[f"x-ratelimit-reset-{name}"] = f"{math.ceil(full)}s"
        return found

    @property
    def idle(self) -> bool:
        """Whether a new one would allow the same."""
        self._fill()
        full = all(bucket.level >= bucket.rate for bucket in self._buckets.values())
        return full and not self._inside

    def _fill(self) -> None:
        for bucket in self._buckets.values():
            bucket.fill(self._clock())


class Quotas:
    """Of all owners, by their names.

    Args:
        default: for owners who have no limits of their own.
    """

    def __init__(self, default: Limits) -> None:
        self._default = default
        self._all: dict[str, Quota] = {}

    def of(self, name: str, limits: Limits) -> Quota:
        """One owner's."""
        wanted = limits or self._default
        quota = self._all.get(name)
        if quota is None or quota.limits != wanted:
            if len(self._all) >= IDLE_OWNERS:
                self._all = {other: each for other, each in self._all.items() if not each.idle}
            quota = self._all[name] = Quota(wanted)
        return quota


def _too_much(limit: str, message: str, seconds: float) -> Refusal:
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        message,
        code="rate_limit_exceeded",
        param=limit,
        headers={"retry-after": str(max(1, math.ceil(seconds)))},
    )
