"""Whatever becomes of a store of pages, or of the way there, costs pages: no wrong one comes."""

import asyncio
import logging
import random
import resource
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote import frames, server
from kvrt.kv.tiers.remote.frames import Kind, Link, Seals, id_of, welcome
from kvrt.net.address import Address

from .elsewhere import KEY, Way, connected, get, pretended, put, remote, served, stranger, until
from .pages import FORM, PAGE_BYTES, blank, body, names

NAMES = names(6)
WHOLE = 12 * PAGE_BYTES
"""About what goes over a connection on which all pages go there and back."""

faults = st.tuples(st.booleans(), st.integers(0, 300) | st.integers(0, WHOLE))


def _through(way: Way, address: Address) -> None:
    """Send and fetch all pages on a way that breaks, then on one that does not."""
    with pretended(way) as broken, remote(broken, patience=0.3, shun=0.01) as one:
        until(lambda: one.stats().connected, 0.5)
        for name in NAMES:
            put(one, name)
        for name in NAMES:
            get(one, name)  # looks at the bytes
        way.cut_at = way.stall_at = way.flip_at = None
        assert until(lambda: one.stats().connected)
        assert until(lambda: put(one, NAMES[0]))
        assert until(lambda: get(one, NAMES[0]))
    with remote(address) as other:  # what was kept is right, too
        assert connected(other)
        assert until(lambda: NAMES[0] in other)
        for name in NAMES:
            get(other, name)


@pytest.mark.promise("P43")
@settings(max_examples=25, deadline=None)
@given(fault=faults)
def test_a_connection_cut_at_any_byte_gives_pages_or_nothing(fault: tuple[bool, int]) -> None:
    with served(patience=0.3) as address:
        way = Way(address)
        way.back, way.cut_at = fault
        _through(way, address)


@pytest.mark.promise("P43")
@settings(max_examples=25, deadline=None)
@given(fault=faults)
def test_a_bit_that_is_another_is_found_wherever_it_is(fault: tuple[bool, int]) -> None:
    with served(patience=0.3) as address:
        way = Way(address)
        way.back, way.flip_at = fault
        _through(way, address)


@pytest.mark.promise("P43")
@settings(max_examples=8, deadline=None)
@given(fault=faults)
def test_a_connection_that_stalls_at_any_byte_is_given_up(fault: tuple[bool, int]) -> None:
    with served(patience=0.3) as address:
        way = Way(address)
        way.back, way.stall_at = fault
        _through(way, address)


# --- stores that lie ------------------------------------------------------------------------------


def lying(answer: Callable[[Link], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A store that has the key, says that it has every page, and then does that to a fetch."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link, proof = await welcome(reader, writer, KEY)
        writer.write(proof)
        await link.tell(Kind.HAS, [id_of(name) for name in NAMES])
        while (await link.read(server.REQUESTS)).kind is not Kind.GET:
            await link.send(Kind.DONE)
        await answer(link)
        await asyncio.sleep(3600)

    return behave


def page(name: StoredName, seal_of: StoredName | None = None) -> tuple[bytes, memoryview]:
    """A page's seal, and its bytes."""
    data = memoryview(body(name))
    return Seals(KEY, FORM).of(seal_of or name, data), data


async def silence(link: Link) -> None:
    await asyncio.sleep(3600)


async def half_a_page(link: Link) -> None:
    seal, data = page(NAMES[0])
    await link.send(Kind.PAGE, seal, 0, data[: PAGE_BYTES // 2])
    await asyncio.sleep(3600)


async def drops(link: Link) -> None:
    seal, data = page(NAMES[0])
    await link.send(Kind.PAGE, seal, 0, data[:0])
    for at in range(PAGE_BYTES):
        link._writer.write(data[at : at + 1])
        await asyncio.sleep(0.01)


async def another_page(link: Link) -> None:
    await link.send(Kind.PAGE, *_at(page(NAMES[1])))


async def another_pages_seal(link: Link) -> None:
    seal, _ = page(NAMES[0])
    await link.send(Kind.PAGE, seal, 0, memoryview(body(NAMES[1])))


async def its_bytes_under_a_made_up_seal(link: Link) -> None:
    await link.send(Kind.PAGE, bytes(16), 0, memoryview(body(NAMES[0])))


async def a_group_that_is_not_there(link: Link) -> None:
    seal, data = page(NAMES[0])
    await link.send(Kind.PAGE, seal, 7, data)


async def an_answer_of_another_kind(link: Link) -> None:
    await link.send(Kind.DONE)


async def a_frame_of_no_kind(link: Link) -> None:
    await link.send(Kind.PUT, bytes(300))


async def four_gigabytes(link: Link) -> None:
    link._writer.write(struct.pack("<BxHI", Kind.HAS, 0, 2**32 - 1) + bytes(16))
    for _ in range(200):
        link._writer.write(bytes(1 << 20))
        await link._writer.drain()


async def names_without_end(link: Link) -> None:
    while True:
        await link.tell(Kind.HAS, [random.randbytes(34) for _ in range(1024)])


async def answers_without_end(link: Link) -> None:
    while True:
        await link.send(Kind.NONE)


async def the_same_twice(link: Link) -> None:
    seal, data = page(NAMES[0])
    head = struct.pack("<BxHI", Kind.PAGE, 0, len(seal))
    frame = head + frames._tag(link._own, link._sent, head, seal) + seal + bytes(data)
    link._writer.write(2 * frame)
    await link._writer.drain()


def _at(found: tuple[bytes, memoryview]) -> tuple[bytes, int, memoryview]:
    return found[0], 0, found[1]


LIES = [silence, half_a_page, drops, another_page, another_pages_seal,
        its_bytes_under_a_made_up_seal, a_group_that_is_not_there, an_answer_of_another_kind,
        a_frame_of_no_kind, four_gigabytes, names_without_end, answers_without_end,
        the_same_twice]  # fmt: skip


@pytest.mark.promise("P12")
@pytest.mark.promise("P43")
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_store_that_lies_costs_its_time_and_no_more(
    lie: Callable[[Link], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt.kv.tiers.remote.desk.MOST_KNOWN", 20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pretended(lying(lie)) as address, remote(address, patience=0.5, shun=60.0) as one:
        assert until(lambda: NAMES[0] in one)
        begun = time.monotonic()
        into = blank()
        ticket = one.fetch(NAMES[0], into)
        behind = [one.fetch(name, blank()) for name in NAMES[1:]]
        assert all(each.wait(5) for each in (ticket, *behind))
        assert time.monotonic() - begun < 3.0
        assert not any(each.ok for each in behind)
        if ticket.ok:  # the first answer was right, what came after it was not
            assert lie is the_same_twice
            assert (into == body(NAMES[0])).all()
        begun = time.monotonic()
        assert not one.store(NAMES[0], blank()).ok or lie is another_page
        assert time.monotonic() - begun < 0.4, "less than the store's patience"
        assert one.stats().pages <= 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


async def another_version(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(struct.pack("<8sI32s", frames.MAGIC, frames.VERSION + 1, bytes(32)))
    await reader.read()


async def a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n" + bytes(100))
    await reader.read()


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.sleep(3600)


async def itself(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it is sent: the other's proof as its own."""
    writer.write(struct.pack("<8sI32s", frames.MAGIC, frames.VERSION, bytes(32)))
    while piece := await reader.read(1 << 16):
        writer.write(piece[-32:])


@pytest.mark.promise("P12")
@pytest.mark.promise("P43")
@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (another_version, "of version 2, and this of version 1"),
        (a_web_server, "no store of KV pages"),
        (nothing, "does not answer in time"),
        (itself, "another key"),
    ],
)
def test_what_is_no_store_with_the_key_is_told_and_not_used(
    behave: Callable[..., Awaitable[None]], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pretended(behave) as address, remote(address, patience=0.3, shun=60.0) as one:
        assert until(lambda: reason in caplog.text, 5)
        assert not one.stats().connected
        assert not one.store(NAMES[0], blank()).ok


def test_two_keys_share_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with served() as address, remote(address, key=b"some other key, long enough") as one:
        assert until(lambda: "another key" in caplog.text, 5)
        assert one.stats().connections == 0


# --- runtimes that lie ----------------------------------------------------------------------------


def _closed(connection: socket.socket, seconds: float = 5.0) -> bool:
    """Whether the store ends the connection."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.promise("P12")
@pytest.mark.promise("P43")
def test_strangers_are_closed_in_time_and_others_go_on() -> None:
    draw = random.Random(3)
    greeting = struct.pack("<8sI32s32sII", frames.MAGIC, frames.VERSION, bytes(32), bytes(32), 4, 1)
    openings = [
        b"", b"G", b"GET / HTTP/1.1\r\n\r\n", bytes(4096), draw.randbytes(10_000), greeting,
        greeting[:50], greeting + struct.pack("<Q", 2**63) + bytes(32),
        greeting + struct.pack("<Q", PAGE_BYTES) + bytes(32),
        struct.pack("<8sI32s32sII", frames.MAGIC, 1, bytes(32), bytes(32), 2**32 - 1, 2**32 - 1),
    ]  # fmt: skip
    with served(patience=0.5) as address, remote(address) as one:
        assert connected(one)
        strangers = [stranger(address) for _ in openings]
        for connection, opening in zip(strangers, openings, strict=True):
            connection.sendall(opening)
        assert put(one, NAMES[0])
        assert get(one, NAMES[0])
        assert all(map(_closed, strangers))
        for connection in strangers:
            connection.close()


@pytest.mark.promise("P12")
def test_many_strangers_keep_nobody_out_for_long() -> None:
    with served(patience=0.5) as address:
        crowd = [stranger(address) for _ in range(100)]
        with remote(address) as one:
            assert connected(one)
            assert put(one, NAMES[0])
        for connection in crowd:
            connection.close()


@pytest.mark.promise("P43")
def test_a_page_whose_seal_is_wrong_is_not_kept() -> None:
    with served() as address, remote(address) as one, remote(address) as liar:
        assert connected(one)
        assert connected(liar)
        liar._seals = Seals(b"a key that nobody else has", FORM)
        assert not put(liar, NAMES[0])
        assert put(one, NAMES[1])
        assert one.stats().pages == 1
