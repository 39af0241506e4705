"""A device whose calls fail when a test says so."""

from collections import Counter
from collections.abc import Callable
from typing import cast

from kvrt.errors import KvrtError
from kvrt.spi import Device
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper


class Faulty(Wrapper):
    """Forwards everything, but for the methods that are to fail.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.refused: dict[str, KvrtError] = {}
        """What each call of a method raises, before anything is done; e.g. of ``memory.create``."""
        self.failing: dict[str, KvrtError] = {}
        """What the ticket of a method raises when somebody waits for it. The work is not done."""
        self.failed: Counter[str] = Counter()
        self.left: int | None = None
        """Chunks of memory that nobody had given back when it was closed."""

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        error = self.refused.get(name)
        if error is not None:
            self.failed[name] += 1
            raise error
        error = self.failing.get(name)
        if error is not None:
            self.failed[name] += 1
            return cast(Result, FailedTicket(error))
        return call(*args, **kwargs)

    def close(self) -> None:
        self.left = self.inner.memory.info().chunks
        super().close()


class FailedTicket:
    """Of work that has ended, without having done anything."""

    def __init__(self, error: KvrtError) -> None:
        self._error = error

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None = None) -> bool:
        raise self._error
