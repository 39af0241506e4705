"""Where ranks of other machines come to rank 0, and how each end knows the other.

    rank 0 --> "\\x89kvrtrk\\n" | version u32 | nonce, 32 bytes
    rank   --> "\\x89kvrtrk\\n" | version u32 | nonce, 32 | release, 32 | rank u32 | ranks u32
               | nodes u32 | process u32 | proof, 32
    rank 0 --> proof, 32

A proof is HMAC-SHA256 under the key that all machines have, over who it is and all that was said
before it. From then on it is a `kvrt.ranks.link.Link`, over which rank 0 says `HELLO`, or `FAILED`
and why not. All numbers are little-endian.
"""

import contextlib
import hmac
import json
import logging
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

from kvrt.errors import ConfigError, DeviceError, in_one_line
from kvrt.net.address import Address
from kvrt.ranks.link import Closed, Kind, Link
from kvrt.ranks.others import Other

PORT = 7708
"""Where rank 0 listens if nobody says otherwise."""

COME_S = 600.0
"""Machines that start together have so long until all have come: images may have to be fetched."""

TALK_S = 5.0
"""Whoever connects has so long to say who it is."""

MOST_TALKING = 64
"""So many may be about to say it."""

RELEASE = version("kvrt")

AGAIN_S = 0.25
"""After so long a rank tries again to reach rank 0, which may not listen yet."""

VERSION = 1
MAGIC = b"\x89kvrtrk\n"
_CALL = struct.Struct("<8sI32s")
_ANSWER = struct.Struct("<8sI32s32sIIII")
_PROOF_BYTES = 32


log = logging.getLogger(__name__)


class Refused(Exception):
    """The other end is not who it should be."""


class Place(NamedTuple):
    """Which rank one is.

    Args:
        rank: counted over all machines.
        ranks: of the model.
        nodes: machines, which have as many ranks each.
    """

    rank: int
    ranks: int
    nodes: int


class Door:
    """Belongs to rank 0. Threads of its own hear who comes.

    Args:
        address: to listen at; ranks of other machines reach it.
        key: of all machines; empty: none.
        ranks, nodes: that the model is dealt out to.

    Raises:
        ConfigError: the address cannot be listened at.
    """

    def __init__(self, address: Address, key: bytes, ranks: int, nodes: int) -> None:
        self._address, self._key = address, key
        self._ranks, self._nodes = ranks, nodes
        self._wanted = set(range(ranks // nodes, ranks))
        self._lock = threading.Lock()
        self._closed = False
        self._came: queue.SimpleQueue[tuple[int, Other]] = queue.SimpleQueue()
        self._talking = threading.Semaphore(MOST_TALKING)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            self._socket = socket.create_server((address.host, address.port), family=family)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"master is {address}, where this machine cannot listen: {in_one_line(error)}",
                fix="name an address of the first machine's own; on the others, add --node-rank",
            ) from None
        self.host: str = self._socket.getsockname()[0]
        """The address as a number, which other machines reach."""
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, name="kvrt-door", daemon=True).start()

    def wait(self, seconds: float, still_wanted: Callable[[], None]) -> dict[int, Other]:
        """The ranks of the other machines, once all have come.

        Args:
            still_wanted: asked now and then; raises if nobody waits any more.

        Raises:
            DeviceError: some have not come in time; they are named.
        """
        here: dict[int, Other] = {}
        end = time.monotonic() + seconds
        try:
            while missing := sorted(set(range(self._ranks // self._nodes, self._ranks)) - {*here}):
                still_wanted()
                if time.monotonic() > end:
                    each = self._ranks // self._nodes
                    late = ", ".join(map(str, sorted({rank // each for rank in missing})))
                    raise DeviceError(
                        f"machines that have not come to {self._address} within {seconds:g} s, by"
                        f" their --node-rank: {late}",
                        fix="start the same command there, with --node-rank and the same --master",
                    )
                with contextlib.suppress(queue.Empty):
                    rank, other = self._came.get(timeout=0.1)
                    here[rank] = other
        except BaseException:
            for other in here.values():
                other.link.close()
            raise
        return here

    def close(self) -> None:
        """Nobody can come any more; those that nobody has waited for are sent away. Safe to call
        twice."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._came.get_nowait()[1].link.close()

    def _listen(self) -> None:
        while True:
            try:
                came, at = self._socket.accept()
            except OSError:
                return
            if not self._talking.acquire(blocking=False):
                came.close()
                continue
            threading.Thread(
                target=self._welcome, args=(came, at[0]), name="kvrt-came", daemon=True
            ).start()

    def _welcome(self, came: socket.socket, host: str) -> None:
        try:
            came.settimeout(TALK_S)
            place, process = self._who(came)
            came.settimeout(None)
            other = Other(Link(came), None, f"process {process} at {host}", host)
            with self._lock:
                if not (reason := self._objection(place)):
                    self._came.put((place.rank, other))
            if reason:
                said = {"message": reason, "fix": "start the same command on all machines"}
                other.link.send(Kind.FAILED, json.dumps(said).encode())
                other.link.close()
        except (OSError, EOFError, Closed):
            came.close()
        except Refused as error:
            log.warning("%s is no rank of this model: %s", host, error)
            came.close()
        finally:
            self._talking.release()

    def _who(self, came: socket.socket) -> tuple[Place, int]:
        call = _CALL.pack(MAGIC, VERSION, secrets.token_bytes(32))
        came.sendall(call)
        answer = _exactly(came, _ANSWER.size)
        magic, protocol, _, release, rank, ranks, nodes, process = _ANSWER.unpack(answer)
        proof = _exactly(came, _PROOF_BYTES)
        said = call + answer
        if magic != MAGIC or not hmac.compare_digest(proof, _proof(self._key, b"rank", said)):
            raise Refused("it has another key")
        if protocol != VERSION or release != _release():
            raise Refused(f"it is of another release of kvrt than {RELEASE}")
        came.sendall(_proof(self._key, b"rank 0", said))
        return Place(rank, ranks, nodes), process

    def _objection(self, place: Place) -> str:
        """Behind the lock: why a rank cannot come."""
        if self._closed:
            return "rank 0 waits for nobody any more"
        own = f"{self._ranks} ranks on {self._nodes} machines"
        if place[1:] != (self._ranks, self._nodes):
            return f"rank 0 has {own}, and rank {place.rank} {place.ranks} on {place.nodes}"
        if place.rank not in self._wanted:
            return f"rank {place.rank} of {own} is there already, or is rank 0's to start"
        self._wanted.remove(place.rank)
        return ""


def reach(address: Address, key: bytes, place: Place, process: int, seconds: float) -> Link:
    """A rank's end: come to rank 0.

    Raises:
        ConfigError: rank 0 is not there, of another release, or has another key.
    """
    own, call = _called(address, seconds)
    try:
        _introduce(own, call, key, place, process)
    except (OSError, EOFError, Refused) as error:
        own.close()
        raise ConfigError(
            f"{address} is not rank 0 with the same key and release ({RELEASE})"
            + (f": {error}" if isinstance(error, Refused) and str(error) else ""),
            fix="give all machines one key (--master-key) and one release of kvrt",
        ) from None
    own.settimeout(None)
    return Link(own)


def _called(address: Address, seconds: float) -> tuple[socket.socket, bytes]:
    """A connection to rank 0, as soon as it listens, and what it has said."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.ExitStack() as stack:
            try:
                own = socket.create_connection((address.host, address.port), timeout=TALK_S)
                stack.enter_context(own)
                call = _exactly(own, _CALL.size)
            except (OSError, EOFError, UnicodeError) as error:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"rank 0 cannot be reached at {address}: {in_one_line(error)}",
                        fix="start the first machine, and name its address in --master on all",
                    ) from None
            else:
                stack.pop_all()
                return own, call
        time.sleep(AGAIN_S)


def _introduce(own: socket.socket, call: bytes, key: bytes, place: Place, process: int) -> None:
    magic, protocol, _ = _CALL.unpack(call)
    if magic != MAGIC or protocol != VERSION:
        raise Refused("it speaks another protocol")
    answer = _ANSWER.pack(
        MAGIC, VERSION, secrets.token_bytes(32), _release(), *place, process
    )  # fmt: skip
    said = call + answer
    own.sendall(answer + _proof(key, b"rank", said))
    if not hmac.compare_digest(_exactly(own, _PROOF_BYTES), _proof(key, b"rank 0", said)):
        raise Refused


def _exactly(own: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        more = own.recv(count - len(got))
        if not more:
            raise EOFError
        got += more
    return bytes(got)


def _release() -> bytes:
    return RELEASE.encode().ljust(32, b"\0")


def _proof(key: bytes, who: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"kvrt ranks\0" + who + b"\0" + said, "sha256")
