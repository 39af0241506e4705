"""What goes over a connection to a store of pages, and how each end knows the other.

    store   --> "\\x89kvrtst\\n" | version u32 | nonce, 32 bytes
    runtime --> "\\x89kvrtst\\n" | version u32 | nonce, 32 | fingerprint, 32 | page size u32
                | groups u32 | bytes of a page u64 of each group | proof, 32
    store   --> proof, 32

A proof is HMAC-SHA256 under the key that both have, over who it is and all that was said before it;
both nonces are in that, so none is of use a second time. From then on, either way:

    frame       kind u8 | 0 u8 | group of layers u16 | bytes of fields u32 | tag, 16 | fields | body

A tag is HMAC-SHA256, cut to 16 bytes, over how many frames went before it, the frame's first 8
bytes and its fields, under a key that is of this connection and direction alone: a frame that is
changed, left out, sent again or sent back ends the connection. A body is of the size that pages of
the group have, and never of another. It is covered by the seal among the fields:

    seal        HMAC-SHA256, cut to 16 bytes, over fingerprint, group, key, parent and tokens of the
                page, and its bytes

so that the page which was asked for is the only one that is taken. A request is answered in its
turn; in between, a store tells which pages have come (`HAS`) and gone (`LOST`).

    runtime --> PUT     key, 32 | parent, 32 | tenant u32 | tokens, i32 ... | seal    and a body
                GET     key, 32
                REMOVE  key, 32
                FORGET  all, tenant or from a page on u8 | tenant u32 | key, 32
                PING
    store   --> DONE
                PAGE    seal                                                          and a body
                NONE    there is no such page, or it was not taken
                HAS     (key, 32 | group u16) ...
                LOST    (key, 32 | group u16) ...

All numbers are little-endian. Nothing is read that is longer than it may be, or allocated for
somebody who has not shown that they have the key.
"""

import asyncio
import enum
import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvrt.errors import ConfigError
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import KEY_BYTES, PageName, StoredName

Body = bytes | memoryview

VERSION = 1
MAGIC = b"\x89kvrtst\n"
_HELLO = struct.Struct("<8sI32s")
_GREETING = struct.Struct("<8sI32s32sII")
_HEAD = struct.Struct("<BxHI")
_NAME = struct.Struct("<32s32sI")
_ID = struct.Struct("<32sH")
_FORGET = struct.Struct("<BI32s")
PROOF_BYTES, TAG_BYTES = 32, 16

SLOWEST = 4 << 20
"""Bytes a second: an end that gives or takes less, for longer than its patience, is given up.
Computing pages is quicker than that."""

MOST_GROUPS = 64
MOST_PAGE = 1 << 28
MOST_PAGE_SIZE = 1 << 13
MOST_IDS = 1024
"""In a frame."""
_MOST_FIELDS = 1 << 16


class Kind(enum.IntEnum):
    """Of a frame."""

    PUT = 1
    GET = 2
    REMOVE = 3
    FORGET = 4
    PING = 5
    DONE = 16
    PAGE = 17
    NONE = 18
    HAS = 19
    LOST = 20


class Scope(enum.IntEnum):
    """What is forgotten: every page, those of a tenant, or a page and all that come after it."""

    ALL = 0
    TENANT = 1
    FROM = 2


class Refused(Exception):
    """The other end is none that pages are exchanged with, or did what it may not."""


class Frame(NamedTuple):
    """One that has come, without the body.

    Args:
        kind: of it.
        group: of layers.
        fields: as above.
    """

    kind: Kind
    group: int
    fields: bytes


def id_of(name: StoredName) -> bytes:
    """What a page is known by where its tokens are not."""
    return _ID.pack(name.page.key, name.group)


def id_from(key: bytes, group: int) -> bytes:
    """As `id_of`, of `Kind.GET` and `Kind.REMOVE`."""
    return _ID.pack(key, group)


def ids_of(fields: bytes) -> list[bytes]:
    """Of `Kind.HAS` and `Kind.LOST`."""
    return [fields[at : at + _ID.size] for at in range(0, len(fields), _ID.size)]


def fields_of(name: PageName, seal: bytes) -> bytes:
    """Of `Kind.PUT`."""
    tokens = struct.pack(f"<{len(name.tokens)}i", *name.tokens)
    return _NAME.pack(name.key, name.parent, name.tenant) + tokens + seal


def name_in(fields: bytes, page_size: int) -> tuple[PageName, bytes]:
    """The name and the seal of a `Kind.PUT`."""
    key, parent, tenant = _NAME.unpack_from(fields)
    tokens = struct.unpack_from(f"<{page_size}i", fields, _NAME.size)
    return PageName(key, parent, tokens, tenant), fields[-TAG_BYTES:]


def forgetting(scope: Scope, tenant: int, key: bytes) -> bytes:
    """Of `Kind.FORGET`."""
    return _FORGET.pack(scope, tenant, key)


def what_is_forgotten(fields: bytes) -> tuple[Scope, int, bytes]:
    """Of `Kind.FORGET`."""
    scope, tenant, key = _FORGET.unpack(fields)
    if scope not in (*Scope,):
        raise Refused("it asks for something to be forgotten that is nothing")
    return Scope(scope), tenant, key


class Seals:
    """Says that a page's bytes are those of its name.

    Args:
        key: that all who share pages have.
        form: of the pages.
    """

    def __init__(self, key: bytes, form: PageFormat) -> None:
        self._key = hmac.digest(key, b"kvrt seal" + form.fingerprint, "sha256")

    def of(self, name: StoredName, body: Body) -> bytes:
        page = name.page
        mac = hmac.new(self._key, struct.pack("<HI", name.group, len(page.tokens)), hashlib.sha256)
        mac.update(page.key + page.parent + struct.pack(f"<{len(page.tokens)}i", *page.tokens))
        mac.update(body)
        return mac.digest()[:TAG_BYTES]

    def fits(self, name: StoredName, body: Body, seal: bytes) -> bool:
        return hmac.compare_digest(self.of(name, body), seal)


class Link:
    """A connection whose ends know each other. Belongs to an event loop.

    Args:
        reader, writer: of the connection.
        form: of the pages that it is for.
        own, others: the keys of the two directions.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        form: PageFormat,
        own: bytes,
        others: bytes,
    ) -> None:
        self.form = form
        self._reader, self._writer = reader, writer
        self._own, self._others = own, others
        self._sent = self._read = 0
        self._draining = asyncio.Lock()

    async def send(
        self, kind: Kind, fields: bytes = b"", group: int = 0, body: Body | None = None
    ) -> None:
        """Send a frame. Waits while the other end takes nothing.

        Raises:
            OSError: the connection is gone.
        """
        head = _HEAD.pack(kind, group, len(fields))
        tag = _tag(self._own, self._sent, head, fields)
        self._sent += 1
        self._writer.write(head + tag + fields)
        if body is not None:
            self._writer.write(body)
        async with self._draining:
            await self._writer.drain()

    async def tell(self, kind: Kind, ids: Sequence[bytes]) -> None:
        """Send pages that have come, or gone."""
        for start in range(0, len(ids), MOST_IDS):
            await self.send(kind, b"".join(ids[start : start + MOST_IDS]))

    async def read(self, kinds: Iterable[Kind]) -> Frame:
        """The next frame; a body that it has is to be read next.

        Raises:
            Refused: it is none of these kinds, or not as it may be.
            EOFError, OSError: the connection is gone.
        """
        head = await self._reader.readexactly(_HEAD.size + TAG_BYTES)
        number, group, size = _HEAD.unpack_from(head)
        kind = next((kind for kind in kinds if kind == number), None)
        if kind is None or group >= len(self.form.sizes) or not self._possible(kind, size):
            raise Refused("it sends what is no frame")
        fields = await self._reader.readexactly(size)
        tag = _tag(self._others, self._read, head[: _HEAD.size], fields)
        if not hmac.compare_digest(tag, head[_HEAD.size :]):
            raise Refused("a frame is not the one that was sent")
        self._read += 1
        return Frame(kind, group, fields)

    async def body(self, group: int) -> bytes:
        """The body of the frame that was read last."""
        return await self._reader.readexactly(self.form.sizes[group])

    def cut(self) -> None:
        """End it at once. Safe to call twice."""
        self._writer.transport.abort()

    def _possible(self, kind: Kind, size: int) -> bool:
        """Whether such a frame has fields of so many bytes."""
        match kind:
            case Kind.PUT:
                return size == _NAME.size + 4 * self.form.page_size + TAG_BYTES
            case Kind.GET | Kind.REMOVE:
                return size == KEY_BYTES
            case Kind.FORGET:
                return size == _FORGET.size
            case Kind.PAGE:
                return size == TAG_BYTES
            case Kind.HAS | Kind.LOST:
                return size % _ID.size == 0 and size <= min(_MOST_FIELDS, MOST_IDS * _ID.size)
            case _:
                return size == 0


async def introduce(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, form: PageFormat
) -> Link:
    """A runtime's end of a new connection.

    Raises:
        Refused: the other end is no store, of another version, or has another key.
        EOFError, OSError: the connection is gone.
    """
    hello = await reader.readexactly(_HELLO.size)
    magic, version, _ = _HELLO.unpack(hello)
    if magic != MAGIC:
        raise Refused("it is no store of KV pages")
    if version != VERSION:
        raise Refused(f"it is of version {version}, and this of version {VERSION}")
    sizes = form.sizes
    greeting = _GREETING.pack(
        MAGIC, VERSION, secrets.token_bytes(32), form.fingerprint, form.page_size, len(sizes)
    ) + struct.pack(f"<{len(sizes)}Q", *sizes)
    said = hello + greeting
    writer.write(greeting + _proof(key, b"runtime", said))
    await writer.drain()
    try:
        proof = await reader.readexactly(PROOF_BYTES)
    except asyncio.IncompleteReadError:
        raise Refused("it has another key, or takes no pages of this model") from None
    if not hmac.compare_digest(proof, _proof(key, b"store", said)):
        raise Refused("it has another key")
    return Link(reader, writer, form, _proof(key, b"to store", said), _proof(key, b"back", said))


async def welcome(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> tuple[Link, bytes]:
    """A store's end of a new connection, and the proof that is sent if it is taken.

    Raises:
        Refused: the other end is no runtime, of another version, or has another key.
        EOFError, OSError: the connection is gone.
    """
    hello = _HELLO.pack(MAGIC, VERSION, secrets.token_bytes(32))
    writer.write(hello)
    greeting = await reader.readexactly(_GREETING.size)
    magic, version, _, fingerprint, page_size, groups = _GREETING.unpack(greeting)
    if magic != MAGIC or version != VERSION:
        raise Refused(f"it is no runtime of version {VERSION}")
    if not 0 < groups <= MOST_GROUPS or not 0 < page_size <= MOST_PAGE_SIZE:
        raise Refused("its pages are none")
    packed = await reader.readexactly(8 * groups)
    said = hello + greeting + packed
    proof = await reader.readexactly(PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"runtime", said)):
        raise Refused("it has another key")
    sizes = struct.unpack(f"<{groups}Q", packed)
    if max(sizes) > MOST_PAGE:
        raise Refused(f"its pages are larger than {MOST_PAGE} bytes")
    try:
        form = PageFormat(fingerprint, sizes, page_size)
    except ConfigError as error:
        raise Refused(str(error)) from None
    own, others = _proof(key, b"back", said), _proof(key, b"to store", said)
    return Link(reader, writer, form, own, others), _proof(key, b"store", said)


def _proof(key: bytes, who: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"kvrt pages\0" + who + b"\0" + said, "sha256")


def _tag(key: bytes, number: int, head: bytes, fields: bytes) -> bytes:
    return hmac.digest(key, struct.pack("<Q", number) + head + fields, "sha256")[:TAG_BYTES]
