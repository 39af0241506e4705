"""What each key and each workspace has left.

    visit     one request more                     refused where an allowance is used up
    reserve   the tokens that it may take at most  refused where it might take more than is left
    the end   what it took                         the rest of what was reserved is free again

Each is done on the event loop at once: however many ask at the same time, no more is taken in a day
or a month than was allowed. A minute's tokens may be overdrawn by what goes on
(`kvrt.server.access.limits`).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

from kvrt.server.access.keys import Keys, Owner
from kvrt.server.access.limits import MEASURES, PERIODS, UNLIMITED, Limits, Quota, Quotas
from kvrt.server.access.oidc import Credentials
from kvrt.server.errors import Refusal
from kvrt.server.tenants.ledger import Day, Ledger, Line, day_of

Kind = Literal["key", "workspace"]
CALLED = {"daily": "a day", "monthly": "a month"}

Place = tuple[Kind, str, str, str]
"""Whose: a key's or a workspace's, by its name; in which day or month; what of."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Whom a request counts for."""

    kind: Kind
    name: str
    limits: Limits


def _nothing(tokens: int) -> None:
    """What is reserved where nobody pays."""


@dataclass(slots=True, eq=False)
class Visit:
    """One request, from when it is let in to its end.

    Args:
        model: as the ledger has it.
        status: of its answer, likewise.
    """

    model: str = ""
    status: int = 0
    asked: bool = False
    """Whether a model was asked: else it counts for nothing."""
    kept: bool = False
    """Whether it was told an answer of before, for which nothing was computed."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    reserve: Callable[[int], None] = _nothing
    """It may take so many tokens, at most. Raises `Refusal`."""
    reserves: bool = False
    """Whether `reserve` has to be called before a model is asked."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What is left of a minute's allowance, as OpenAI's clients read it."""

    @property
    def tokens(self) -> int:
        """That count."""
        return 0 if self.kept else self.prompt_tokens + self.generated_tokens

    def took(self, prompt: int, cached: int, generated: int) -> None:
        """A model was asked, and took so many tokens."""
        self.asked = True
        self.prompt_tokens, self.cached_tokens, self.generated_tokens = prompt, cached, generated


class Accounts:
    """Of all keys and workspaces. Belongs to the event loop.

    Args:
        default: limits of keys that have none of their own.
        credentials: know those of workspaces; None: there are none.
        ledger: is told of each request; None: nothing is kept.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        default: Limits,
        credentials: Credentials | None = None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._default = default
        self._keys = None if credentials is None else credentials.keys
        self._ledger = ledger
        self._clock = clock
        self._quotas: dict[Kind, Quotas] = {"key": Quotas(default), "workspace": Quotas(UNLIMITED)}
        self._taken: Counter[Place] = Counter()
        self._held: Counter[Place] = Counter()
        self._month = period_of("monthly", clock())
        for day in () if ledger is None else ledger.month:
            self._note_day(day)

    def _note_day(self, day: Day) -> None:
        """What was taken before this server began."""
        amounts = {"requests": day.requests, "tokens": day.prompt_tokens + day.generated_tokens}
        whose: list[tuple[Kind, str]] = [
            ("workspace", day.workspace),
            ("key", day.key or day.workspace),
        ]
        for kind, name in whose:
            for when in (day.day, day.day[:7]):
                for what, amount in amounts.items():
                    self._taken[kind, name, when, what] += amount

    @property
    def keys(self) -> Keys | None:
        """Of a file; None: there is none."""
        return self._keys

    # --- who pays --------------------------------------------------------------------------------

    def payers(self, owner: Owner) -> list[Payer]:
        """Whom the requests of a key count for."""
        found = [Payer("key", owner.name, owner.limits or self._default)]
        limits = None if self._keys is None else self._keys.workspaces.get(owner.tenant)
        return found if limits is None else [*found, Payer("workspace", owner.tenant, limits)]

    def _payer_of_lines(self, tenant: str) -> Payer:
        """Whom the lines of batches count for: who has sent them is not known, but for whom."""
        if self._keys is None:
            return Payer("key", tenant, self._default)
        if (limits := self._keys.workspaces.get(tenant)) is not None:
            return Payer("workspace", tenant, limits)
        return Payer("key", tenant, self._keys.limits_of(tenant) or self._default)

    def left(self, owner: Owner) -> list[dict[str, Any]]:
        """What a key may take, and has."""
        return [
            {
                "of": payer.kind,
                "name": payer.name,
                "period": period,
                "measure": measure,
                "limit": most,
                "taken": self._taken[place] + self._held[place],
            }
            for payer in self.payers(owner)
            for period, measure, most in _allowances(payer.limits)
            for place in [self._place(payer, period, measure)]
        ]

    # --- one request -----------------------------------------------------------------------------

    @contextmanager
    def visit(self, owner: Owner, route: str, id: str = "") -> Iterator[Visit]:
        """A request of a client's.

        Args:
            route: that it comes by.
            id: its own.

        Raises:
            Refusal: not now, and when.
        """
        payers = self.payers(owner)
        quotas = [self._quotas[each.kind].of(each.name, each.limits) for each in payers]
        with ExitStack() as stack:
            for quota in quotas:
                stack.enter_context(quota.enter())
            visit = stack.enter_context(self._entered(payers, owner.tenant, owner.name, route, id))
            stack.callback(_spend, quotas, visit)
            visit.headers = _joined(quotas)
            yield visit

    @contextmanager
    def line(self, tenant: str, route: str) -> Iterator[Visit]:
        """A line of a batch: it counts for days and months alone. Raises as `visit`."""
        with self._entered([self._payer_of_lines(tenant)], tenant, "", route, "") as visit:
            yield visit

    @contextmanager
    def _entered(
        self, payers: Sequence[Payer], tenant: str, key: str, route: str, id: str
    ) -> Iterator[Visit]:
        at, visit = self._clock(), Visit()
        visit.reserves = any(
            measure == "tokens" for each in payers for _, measure, _ in _allowances(each.limits)
        )
        places = {
            measure: [self._place(each, period, measure) for each in payers for period in PERIODS]
            for measure in MEASURES
        }
        with ExitStack() as held:
            held.callback(self._write, visit, at, tenant, key, route, id)
            held.callback(self._take, places, visit)
            held.enter_context(self._reserved(payers, "requests", 1))
            with self._reserved(payers, "tokens", 1):
                pass  # where none is left, no prompt is even looked at
            visit.reserve = lambda tokens: held.enter_context(
                self._reserved(payers, "tokens", tokens)
            )
            yield visit

    @contextmanager
    def _reserved(self, payers: Sequence[Payer], measure: str, amount: int) -> Iterator[None]:
        """So much is nobody else's meanwhile. Raises `Refusal`."""
        places = []
        for payer in payers:
            for period, of, most in _allowances(payer.limits):
                if of != measure:
                    continue
                places.append(place := self._place(payer, period, measure))
                left = most - self._taken[place] - self._held[place]
                if amount > left:
                    raise _used_up(payer, period, measure, most, amount, left, self._clock())
        self._held.update(dict.fromkeys(places, amount))
        try:
            yield
        finally:
            self._held.subtract(dict.fromkeys(places, amount))
            for place in places:
                if not self._held[place]:
                    del self._held[place]

    def _take(self, places: Mapping[str, Sequence[Place]], visit: Visit) -> None:
        """What it took, of the day and the month in which it came."""
        if visit.asked:
            self._taken.update(dict.fromkeys(places["requests"], 1))
            self._taken.update(dict.fromkeys(places["tokens"], visit.tokens))

    def _place(self, payer: Payer, period: str, measure: str) -> Place:
        now = self._clock()
        if (month := period_of("monthly", now)) != self._month:  # nobody asks for the last one
            self._month = month
            self._taken = Counter({p: n for p, n in self._taken.items() if p[2] >= month})
        return (payer.kind, payer.name, period_of(period, now), measure)

    def _write(self, visit: Visit, at: float, tenant: str, key: str, route: str, id: str) -> None:
        if self._ledger is not None and visit.asked:
            self._ledger.add(
                Line(
                    at, id, tenant, key, route, visit.model, visit.status,
                    visit.prompt_tokens, visit.cached_tokens, visit.generated_tokens,
                )
            )  # fmt: skip


def _allowances(limits: Limits) -> list[tuple[str, str, int]]:
    """Of days and months: period, measure, how much."""
    return [
        (period, measure, most)
        for period in PERIODS
        for measure in MEASURES
        if (most := getattr(limits, f"{period}_{measure}")) is not None
    ]


def _used_up(
    payer: Payer, period: str, measure: str, most: int, amount: int, left: int, now: float
) -> Refusal:
    whole = f"this {payer.kind}'s {most} {measure} {CALLED[period]}"
    why = f"{whole} are used up"
    if left > 0:
        why = f"this may take {amount} {measure}; of {whole} {left} are left"
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        why,
        param=f"{period}_{measure}",
        code="insufficient_quota",
        headers={"retry-after": str(_seconds_left(period, now))},
    )


def _spend(quotas: Sequence[Quota], visit: Visit) -> None:
    for quota in quotas:
        quota.spend(visit.tokens)


def _joined(quotas: Sequence[Quota]) -> Mapping[str, str]:
    """Headers of the key, and where it has no limit, of its workspace."""
    found: dict[str, str] = {}
    for quota in reversed(quotas):
        found |= quota.headers
    return found


def period_of(period: str, now: float) -> str:
    """What all times of one have in common: their day, or their month."""
    return day_of(now) if period == "daily" else day_of(now)[:7]


def _seconds_left(period: str, now: float) -> int:
    """Until the next one begins."""
    at = datetime.fromtimestamp(now, UTC)
    begun = at.replace(hour=0, minute=0, second=0, microsecond=0)
    after = begun + timedelta(days=1)
    if period == "monthly":
        after = (begun.replace(day=1) + timedelta(days=32)).replace(day=1)
    return int((after - at).total_seconds()) + 1
