"""A socket between two ranks, over which messages go.

| length: u32, of what follows | kind: u8 | body |
"""

import contextlib
import socket
import struct
import threading
from enum import IntEnum

from kvrt.errors import DeviceError

HEAD = struct.Struct("<IB")
KEEP_ALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 5}
"""Another machine may go without a word: it is noticed after 15 seconds."""

LONGEST = 1 << 30
"""Bytes of a body. A step of 4,096 sequences of a million tokens takes that much, about."""


class Kind(IntEnum):
    """What a message is. Its body is JSON, but for those of `ATTEMPT` and `STEP`."""

    HELLO = 1  # to a rank: who it is, and the options of the runtime
    MEET = 2  # what a rank says to all; and to each, what all have said
    CACHE = 3  # how pages are laid out
    ATTEMPT = 4  # ops, to be carried out so that they can be undone
    SETTLE = 5
    UNDO = 6
    STEP = 7
    FILL = 8
    DRAIN = 9
    DIGEST = 10  # of what is mapped, and of the page table: asked and answered
    COPY = 11  # pages, to rank 0 or from it
    DONE = 12  # an answer
    FAILED = 13  # a rank cannot go on, and why: the last that it says
    PING = 14
    PONG = 15


class Closed(Exception):
    """The other side has gone, or cannot be reached."""


class Ended(Closed):
    """The other side has closed the connection, as it does at its end."""


class Link:
    """One end. One thread receives; any may send.

    Args:
        own: a connected socket.
    """

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self._sending = threading.Lock()
        if own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEP_ALIVE.items():
                own.setsockopt(socket.IPPROTO_TCP, option, value)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Raises `Closed`."""
        with self._sending:
            try:
                self._socket.sendall(HEAD.pack(len(body), kind) + body)
            except OSError as error:
                raise Closed(str(error)) from error

    def receive(self) -> tuple[Kind, bytes]:
        """The next message.

        Raises:
            Closed: there is none, and never will be.
            DeviceError: what came is none.
        """
        length, kind = HEAD.unpack(self._exactly(HEAD.size))
        if length > LONGEST or kind not in Kind._value2member_map_:
            raise DeviceError(f"a rank sent {length} bytes of kind {kind}, which is no message")
        return Kind(kind), self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        body = bytearray(count)
        view, at = memoryview(body), 0
        while at < count:
            try:
                got = self._socket.recv_into(view[at:])
            except OSError as error:
                raise Closed(str(error)) from error
            if not got:
                raise Ended("the connection was closed")
            at += got
        return bytes(body)

    def close(self) -> None:
        """Safe to call twice."""
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
