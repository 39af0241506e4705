"""What is asked by one thread at a time, until it is closed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from kvrt.errors import ConfigError


class Part(Protocol):
    """Gives back what it holds."""

    def close(self) -> None: ...


class Closing:
    """A model with the device that it is on.

    Args:
        name: what an error calls it.
        parts: closed with it, in this order.
    """

    def __init__(self, name: str, *parts: Part) -> None:
        self._called = name
        self._parts = parts
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """One call at a time.

        Raises:
            ConfigError: it is closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigError(f"the {self._called} is closed", fix="make another")
            yield

    def close(self) -> None:
        """Give the memory back. It answers no more. Safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for part in self._parts:
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
