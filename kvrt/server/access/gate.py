"""Who comes in: so many at once, and nobody any more when the server ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from time import monotonic

from kvrt.server.errors import Refusal

LONGEST_RETRY_S = 60


class Gate:
    """Counts the sequences that are asked for and have not ended.

    Args:
        most: of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._seconds = 1.0  # that a call takes, of late
        self.inside = 0
        self.since = 0.0
        """When somebody came in last while nobody was inside."""
        self.closing = False

    @contextmanager
    def enter(self, count: int) -> Iterator[None]:
        """A call with `count` sequences.

        Raises:
            Refusal: there is no room, and when to come again; or never; or the server ends.
        """
        if self.closing:
            raise shutting_down()
        if count > self.most:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                f"{count} completions are more than this server has places, {self.most}",
                param="n",
            )
        if self.inside + count > self.most:
            retry = min(LONGEST_RETRY_S, max(1, round(self._seconds)))
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self.inside} of {self.most} places are taken, and this needs {count}",
                code="rate_limit_exceeded",
                headers={"retry-after": str(retry)},
            )
        begun = monotonic()
        if not self.inside:
            self.since = begun
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
            self._seconds += 0.2 * (monotonic() - begun - self._seconds)


def shutting_down() -> Refusal:
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server is shutting down",
        code="shutting_down",
        headers={"retry-after": "5", "connection": "close"},
    )
