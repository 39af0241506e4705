"""Batches of events, as they come, are missed, and begin anew."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
import zmq

from kvrt.errors import ConfigError
from kvrt.integrations.events.wire import BlockStored, EventBatch
from kvrt.integrations.prefixes import Prefixes
from kvrt.routing.listening import Listening


class Telling:
    """What a server publishes, and what it keeps for who asks."""

    def __init__(self, folder: Path) -> None:
        self.events, self.replay = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.bind(self.events)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.replay)
        self.asked: list[int] = []

    def tell(self, number: int, at: float, *, name: int | None = None) -> None:
        """A batch by which a page of its own is stored."""
        self._socket.send_multipart([b"", number.to_bytes(8, "big"), batch(at, name or number)])

    def answer(self, numbers: Iterable[int]) -> None:
        """Who asks what there was is told of these."""
        client, empty, first = self._router.recv_multipart()
        self.asked.append(int.from_bytes(first, "big"))
        for number in numbers:
            parts = [client, empty, b"", number.to_bytes(8, "big"), batch(1.0, number)]
            self._router.send_multipart(parts)
        self._router.send_multipart([client, empty, b"", b"\xff" * 8, b""])

    def close(self) -> None:
        self._context.destroy(linger=0)


def batch(at: float, name: int) -> bytes:
    event = BlockStored([name + 1000], None, [name], 1, None, "GPU", None)
    return msgspec.msgpack.encode(EventBatch(at, [event], 0))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def heard(telling: Telling, prefixes: Prefixes, number: int, at: float, pages: int) -> None:
    """Tell a batch again and again, as long as nobody listens yet."""
    async with asyncio.timeout(30):
        while prefixes.pages < pages:
            telling.tell(number, at)
            await asyncio.sleep(0.05)


def test_what_was_before_is_fetched_and_what_was_missed_too(tmp_path: Path) -> None:
    async def run() -> None:
        telling, prefixes = Telling(tmp_path), Prefixes()
        listening = Listening(telling.events, telling.replay, prefixes)
        await asyncio.to_thread(telling.answer, [0, 1])
        await until(lambda: prefixes.pages == 2)
        await heard(telling, prefixes, 2, 1.0, 3)
        telling.tell(5, 1.0)
        await asyncio.to_thread(telling.answer, [3, 4, 5])
        await until(lambda: prefixes.pages == 6)
        assert telling.asked == [0, 3]
        listening.close()
        telling.close()

    asyncio.run(run())


def test_what_was_missed_for_good_makes_all_before_it_doubtful(tmp_path: Path) -> None:
    async def run() -> None:
        telling, prefixes = Telling(tmp_path), Prefixes()
        listening = Listening(telling.events, None, prefixes)
        await heard(telling, prefixes, 0, 1.0, 1)
        telling.tell(1, 1.0)
        await until(lambda: prefixes.pages == 2)
        telling.tell(7, 1.0)
        await until(lambda: prefixes.pages == 1)
        listening.close()
        telling.close()

    asyncio.run(run())


def test_a_server_that_began_anew_has_none_of_its_old_pages(tmp_path: Path) -> None:
    async def run() -> None:
        telling, prefixes = Telling(tmp_path), Prefixes()
        listening = Listening(telling.events, telling.replay, prefixes)
        await asyncio.to_thread(telling.answer, [0, 1, 2])
        await until(lambda: prefixes.pages == 3)
        await heard(telling, prefixes, 3, 1.0, 4)
        telling.tell(0, 2.0, name=50)
        await until(lambda: prefixes.pages == 1)
        listening.close()
        telling.close()

    asyncio.run(run())


def test_a_batch_that_is_none_is_left_out(tmp_path: Path) -> None:
    async def run() -> None:
        telling, prefixes = Telling(tmp_path), Prefixes()
        listening = Listening(telling.events, telling.replay, prefixes)
        await asyncio.to_thread(telling.answer, [0])
        await heard(telling, prefixes, 1, 1.0, 2)
        for parts in ([b"x"], [b"", b"\0" * 8, b"\xc1"], [b"", b"\xff" * 8, b""], [b"", b"1", b""]):
            telling._socket.send_multipart(parts)
        telling.tell(2, 1.0)
        await until(lambda: prefixes.pages == 3)
        listening.close()
        telling.close()

    asyncio.run(run())


def test_an_address_that_is_none_is_refused() -> None:
    async def run() -> None:
        with pytest.raises(ConfigError, match="cannot be listened to"):
            Listening("tcp://nowhere", None, Prefixes())

    asyncio.run(run())
