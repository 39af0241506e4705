"""What a protocol is to the server: how its requests read, and how answers are written in it."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from kvrt.outputs import Delta, Result
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal


class Call(Protocol):
    """One request, and its answer in the words of its protocol. Belongs to that request alone.

    A stream is `opening`, then a `piece` for each delta, then `closing`; or, wherever it breaks,
    the protocol's `broken`. Each of these is events, or none.
    """

    asks: Sequence[Ask]
    moves: ClassVar[bool]
    """Whether a stream can go on at another server: the tokens say all that its events do, but for
    what is named in the first and by `kvrt.server.moving.Told`."""

    @property
    def stream(self) -> bool: ...

    def whole(self, results: Sequence[Result]) -> object:
        """The answer as one JSON value."""

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterable[bytes]:
        """Before anything was said.

        Args:
            prompts: the tokens of each ask.
        """

    def piece(self, number: int, delta: Delta) -> Iterable[bytes]:
        """Of the answer to ask `number`."""

    def closing(self, results: Sequence[Result]) -> Iterable[bytes]: ...


class Api(Protocol):
    """A route's protocol."""

    def read(self, body: bytes) -> Call:
        """What is asked. Raises `Refusal` or `KvrtError` if it is not as it should be."""

    def refused(self, refusal: Refusal) -> object:
        """An error as the whole answer."""

    def broken(self, refusal: Refusal) -> bytes:
        """An error as the last event of a stream."""
