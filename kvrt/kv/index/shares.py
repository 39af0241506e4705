"""How large the shares of tenants are beside each other, where memory is short."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

LARGEST_SHARE = 1000

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Shares(Generic[Key]):
    """Each tenant is due its weight's part of the weights of all that want memory.

    Args:
        weights: of those that were given one, at least 1; others have 1.
    """

    weights: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))

    def __bool__(self) -> bool:
        """Whether any were given."""
        return bool(self.weights)

    def having(self, tenant: Key, weight: int | None) -> "Shares[Key]":
        """The same, but for one tenant; None: it was given none."""
        others = {key: value for key, value in self.weights.items() if key != tenant}
        return Shares(others if weight is None else {**others, tenant: weight})

    def of(self, tenant: Key) -> int:
        """A tenant's weight."""
        return self.weights.get(tenant, 1)

    def part(self, tenant: Key, held: int) -> float:
        """What a tenant holds, for its weight: who has the smallest is served next, who has the
        largest gives up first."""
        return held / self.weights.get(tenant, 1)


EVEN: Shares[Any] = Shares()
"""Of whomever: all have the same."""
