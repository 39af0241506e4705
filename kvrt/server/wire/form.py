"""Forms with a file in them (``multipart/form-data``, RFC 7578), read as they come: the file goes
on at once, and is never in memory as a whole."""

from collections.abc import AsyncIterator, Awaitable, Callable
from email.message import Message

from kvrt.server.errors import Refusal

MAX_HEADERS = 16 << 10
MAX_FIELD = 4 << 10
MAX_FIELDS = 32
MAX_OTHER = 256 << 10
"""Bytes that are none of the file's, in all."""

FILE = "file"

Write = Callable[[bytes], Awaitable[None]]


class Form:
    """One form.

    Args:
        kind: the header ``content-type``.
        write: takes the pieces of the part that is called ``file``.

    Raises:
        Refusal: it is no form.
    """

    def __init__(self, kind: str, write: Write) -> None:
        header = _header("content-type", kind)
        boundary = header.get_boundary()
        if header.get_content_type() != "multipart/form-data" or not boundary:
            raise _wrong("it is not multipart/form-data with a boundary")
        try:
            self._mark = b"\r\n--" + boundary.encode("ascii")
        except UnicodeEncodeError:
            raise _wrong("its boundary is not plain") from None
        self._write = write
        self._field: bytearray | None = None
        self._name = ""
        self._parts = 0
        self._left = MAX_OTHER
        self.given: list[tuple[str, str]] = []
        """The other parts, in their order: their names, and what they are."""
        self.file: str | None = None
        """The name of the file that came."""

    @property
    def fields(self) -> dict[str, str]:
        """The same by name; of several, the last."""
        return dict(self.given)

    async def read(self, pieces: AsyncIterator[bytes]) -> None:
        """All of it.

        Raises:
            Refusal: it is not as it should be, or longer than it may be.
        """
        data = bytearray(b"\r\n")  # the first mark stands at the beginning of a line, too
        inside, ended = False, False
        async for piece in pieces:
            self._left -= len(piece)
            if ended:
                self._check_left(0)
                continue
            data += piece
            while not ended:
                at = data.find(self._mark)
                if at < 0:
                    kept = len(data) - len(self._mark)
                    if kept > 0:
                        await self._take(data[:kept], inside=inside)
                        del data[:kept]
                    self._check_left(len(data))
                    break
                after = at + len(self._mark)
                head = data.find(b"\r\n\r\n", after)
                ended = data[after : after + 2] == b"--"
                if not ended and head < 0:
                    if len(data) - after > MAX_HEADERS:
                        raise _wrong("a part has too many headers")
                    break
                await self._take(data[:at], inside=inside)
                self._end()
                if not ended:
                    self._begin(bytes(data[after:head]))
                    del data[: head + 4]
                    inside = True
        if not ended:
            raise _wrong("it is not whole")

    def _check_left(self, unread: int) -> None:
        if self._left + unread < 0:
            raise _wrong("too much of it is not the file")

    def _begin(self, headers: bytes) -> None:
        """A part."""
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise _wrong(f"it has more than {MAX_FIELDS} parts")
        given = ""
        for line in headers.decode("utf-8", "replace").split("\r\n"):
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                given = value.strip()
        header = _header("content-disposition", given)
        found = header.get_param("name", header="content-disposition")
        if not isinstance(found, str):
            raise _wrong("a part has no name")
        self._name = found
        self._field = None
        if found != FILE:
            self._field = bytearray()
        elif self.file is not None:
            raise _wrong("it has more than one file")
        else:
            self.file = header.get_filename("")

    async def _take(self, data: bytearray, *, inside: bool) -> None:
        if not inside or not data:
            return
        if self._field is None:
            self._left += len(data)
            await self._write(bytes(data))
            return
        self._field += data
        if len(self._field) > MAX_FIELD:
            raise _wrong("a field is too long")

    def _end(self) -> None:
        if self._field is not None:
            self.given.append((self._name, self._field.decode("utf-8", "replace")))
            self._field = None


def _header(name: str, value: str) -> Message:
    found = Message()
    found[name] = value.replace("\r", " ").replace("\n", " ")
    return found


def _wrong(why: str) -> Refusal:
    return Refusal(400, f"the form cannot be read: {why}", code="invalid_form")
