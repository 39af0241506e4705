"""Whose an answer is that is kept, and which of them are to be forgotten."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """The request that an answer was made for.

    Args:
        tenant: its workspace.
        key: the name of its key.
        route: that it asked.
        at: when, by ``time.monotonic``.
    """

    tenant: str
    key: str = ""
    route: str = ""
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Selection:
    """Some of a workspace's answers.

    Args:
        tenant: the workspace.
        key: of those, that this key's requests have made; None: any key's.
        route: that were asked of this route; None: of any.
        before: that were asked before that time; None: at any.
    """

    tenant: str
    key: str | None = None
    route: str | None = None
    before: float | None = None

    def has(self, source: Source) -> bool:
        """Whether an answer is one of them."""
        return (
            source.tenant == self.tenant
            and self.key in (None, source.key)
            and self.route in (None, source.route)
            and (self.before is None or source.at < self.before)
        )
