"""What a vendor's driver must be able to do for a GPU backend."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, ParamSpec, TypeVar

from kvrt.errors import KvrtError

Params = ParamSpec("Params")
Result = TypeVar("Result")
Direction = Literal["to host", "to device", "within"]
Handle = Any
"""A chunk's, a stream's or an event's, as the vendor's binding has it."""


def shown(argument: Any) -> str:
    """An argument of a call, for its error: addresses in hexadecimal, structures by their names."""
    if isinstance(argument, int):
        return hex(argument) if argument >= 2**32 else str(argument)
    return type(argument).__name__


class Calls(ABC):
    """The driver's calls for one device, each one call and one look at its status.

    They may come from any thread. A driver has a *current* device for each thread, which most calls
    are about, and a thread may have another one or none: `here` changes it for the call, and
    changes it back.

    Each raises `kvrt.errors.OutOfMemory` where the driver has no memory left, `DeviceError` with
    the driver's own name for anything else, and changes nothing then. Sizes are bytes, addresses
    are numbers.
    """

    closed = False

    # --- the device --------------------------------------------------------------------------

    @property
    @abstractmethod
    def own(self) -> int:
        """What is current while this device is."""

    @abstractmethod
    def current(self) -> int:
        """What is current in this thread."""

    @abstractmethod
    def make_current(self, what: int) -> None:
        """Make it current in this thread."""

    @abstractmethod
    def another(self) -> "Calls":
        """Calls for the same device, that are usable after these were closed."""

    @abstractmethod
    def close(self) -> None:
        """The device is not used any more. Safe to call twice."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work that was submitted to the device."""

    def here(
        self, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        """`call(...)` with the device current."""
        before = self.current()
        if before == self.own:
            return call(*args, **kwargs)
        self.make_current(self.own)
        try:
            return call(*args, **kwargs)
        finally:
            # What was asked for has been done, or has failed with an error of its own.
            with suppress(KvrtError):
                self.make_current(before)

    # --- memory ------------------------------------------------------------------------------

    @abstractmethod
    def granularity(self) -> int:
        """Bytes of a chunk, the unit of `map`."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Free bytes and all bytes of the device."""

    @abstractmethod
    def reserve(self, nbytes: int, alignment: int) -> int: ...

    @abstractmethod
    def release(self, base: int, nbytes: int) -> None: ...

    @abstractmethod
    def create(self, nbytes: int) -> Handle: ...

    @abstractmethod
    def destroy(self, chunk: Handle) -> None: ...

    @abstractmethod
    def map(self, address: int, nbytes: int, chunk: Handle) -> None:
        """Put a chunk there, which nobody may reach yet."""

    @abstractmethod
    def allow(self, address: int, nbytes: int) -> None:
        """Let the device read and write what is mapped there."""

    @abstractmethod
    def unmap(self, address: int, nbytes: int) -> None: ...

    @abstractmethod
    def host_create(self, nbytes: int) -> int:
        """Page-locked host memory."""

    @abstractmethod
    def host_destroy(self, address: int) -> None: ...

    # --- streams and events ------------------------------------------------------------------

    @abstractmethod
    def stream_create(self) -> Handle:
        """A stream that does not wait for the default one."""

    @abstractmethod
    def stream_destroy(self, stream: Handle) -> None: ...

    @abstractmethod
    def stream_wait(self, stream: Handle, event: Handle) -> None:
        """What is submitted to the stream from now on waits for the event; the host does not."""

    @abstractmethod
    def stream_synchronize(self, stream: Handle) -> None: ...

    @abstractmethod
    def copy(
        self, direction: Direction, target: int, source: int, nbytes: int, stream: Handle
    ) -> None: ...

    @abstractmethod
    def event_create(self) -> Handle:
        """An event that keeps no time."""

    @abstractmethod
    def event_destroy(self, event: Handle) -> None: ...

    @abstractmethod
    def event_record(self, event: Handle, stream: Handle) -> None: ...

    @abstractmethod
    def event_done(self, event: Handle) -> bool: ...

    @abstractmethod
    def event_synchronize(self, event: Handle) -> None: ...
