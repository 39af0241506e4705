"""One connection: uvicorn's, whose requests have to come to a point."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""From the first byte of a request's line and headers, or from connecting, to their last."""


class Connection(H11Protocol):
    """Closes if a request has begun and its headers are not whole in time. Otherwise, a few hundred
    clients that stall there, on purpose or not, would keep everybody else out."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        waits = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        if not waits:
            self._expect_nothing()
        elif self.conn.trailing_data[0]:
            self._expect_head()

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        """Say so, where the client has said anything; then hang up."""
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            headers = [(b"connection", b"close"), (b"content-length", b"0")]
            answer: list[Any] = [
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.EndOfMessage(),
            ]
            for event in answer:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
