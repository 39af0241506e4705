"""Both clients, called in the same way."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from kvrt.client import AsyncClient, Client


class Driver:
    """Calls either client in the same way: what is awaited, and what comes piece by piece."""

    def __init__(self, client: Client | AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.client: Any = client
        self._loop = loop

    def one(self, call: Callable[[Any], Any]) -> Any:
        found = call(self.client)
        return self._loop.run_until_complete(found) if asyncio.iscoroutine(found) else found

    def all(self, call: Callable[[Any], Any]) -> list[Any]:
        found = call(self.client)
        if not isinstance(found, AsyncIterator):
            return list(found)

        async def gather() -> list[Any]:
            return [each async for each in found]

        return self._loop.run_until_complete(gather())

    def until(self, call: Callable[[Any], Any], holds: Callable[[Any], bool]) -> Any:
        """The first piece of which something holds; what comes after it is left."""
        found = call(self.client)
        if not isinstance(found, AsyncGenerator):
            with contextlib.closing(found):
                return next(each for each in found if holds(each))

        async def find() -> Any:
            async with contextlib.aclosing(found):
                async for each in found:
                    if holds(each):
                        return each
            raise AssertionError("it has ended")

        return self._loop.run_until_complete(asyncio.wait_for(find(), 60))


@contextlib.contextmanager
def driving(kind: str, url: str, key: str | None = None) -> Iterator[Driver]:
    loop = asyncio.new_event_loop()
    driver = Driver((AsyncClient if kind == "async" else Client)(url, key), loop)
    yield driver
    driver.one(lambda client: client.close())
    loop.close()
