"""Every error kvrt raises on purpose.

    KvrtError                 exit  when
    ├── ConfigError            2    an option or argument has a bad value
    ├── RequestError           2    one request is bad; others are not touched
    ├── ModelError             3    a model is missing, damaged or not supported
    │   └── WeightsUnreadable  3    a part of one cannot be read while it runs
    ├── StoreError             2    a folder cannot keep KV pages, or keeps those of something else
    ├── BackendUnavailable     4    a backend cannot be used on this machine
    ├── CapacityError          5    something does not fit in memory
    │   └── OutOfMemory        5    the device itself refused physical memory
    ├── DeviceError            1    a device call failed
    │   ├── PeerLost           1    another rank of the same model has gone, or is late
    │   └── ContractError      1    a caller or a backend broke a rule of `kvrt.spi`
    └── IntegrityError         1    the page table and the memory under it disagree

Each carries the cause (its message) and, where one is known, the remedy (`fix`), so that a
command line can print both and a program can show them.
"""

from typing import Any, Literal


class KvrtError(Exception):
    """Base of all errors kvrt raises on purpose.

    Args:
        message: what is wrong, naming the input.
        fix: what to do about it, as a command or a sentence; empty if nothing helps.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """It goes to another process with all that it says, not with its message alone."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[KvrtError], args: tuple[Any, ...], fields: dict[str, Any]) -> KvrtError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigError(KvrtError):
    """An option or argument has a value that cannot be used."""

    exit_code = 2


class RequestError(KvrtError):
    """One request is bad. The engine and every other request go on.

    Args:
        param: the name of the request's field that is at fault.
    """

    exit_code = 2

    def __init__(self, message: str, *, param: str = "", fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.param = param


class ContextFull(RequestError):
    """A prompt leaves no room in the context for an answer.

    Args:
        tokens: of the prompt.
        room: tokens that the context has room for.
    """

    def __init__(self, message: str, *, tokens: int, room: int, fix: str = "") -> None:
        super().__init__(message, param="prompt", fix=fix)
        self.tokens = tokens
        self.room = room


class ModelError(KvrtError):
    """A model is missing, damaged, or of a kind that is not supported."""

    exit_code = 3


class WeightsUnreadable(ModelError):
    """A part of a model cannot be read while it runs. It may be at another time."""


StoreFault = Literal[
    "missing", "denied", "locked", "foreign", "version", "damaged", "codec", "interrupted", "failed"
]
"""Why a folder of KV pages cannot be used: there are none; no permission; another process writes to
it; it belongs to another model, format or program; to another version of kvrt; its header is not
what was written; it is compressed and the library is missing; the runtime was closed meanwhile; the
system refused otherwise."""


class StoreError(KvrtError):
    """A folder of KV pages cannot be used; what is in it counts as not there.

    Args:
        reason: see `StoreFault`.
    """

    exit_code = 2

    def __init__(self, message: str, *, reason: StoreFault, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.reason = reason


class BackendUnavailable(KvrtError):
    """A backend is not installed, is broken, or finds no device."""

    exit_code = 4


class CapacityError(KvrtError):
    """Something does not fit.

    Args:
        needed: how much was asked for, in bytes (0 if unknown).
        free: how much there was, in bytes (0 if unknown).
    """

    exit_code = 5

    def __init__(self, message: str, *, needed: int = 0, free: int = 0, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.needed = needed
        self.free = free


class OutOfMemory(CapacityError):
    """The device refused to give physical memory. The core turns this into a value to plan with."""


class DeviceError(KvrtError):
    """A device call failed.

    Args:
        call: the vendor's name of the call, e.g. ``mremap``.
        code: the vendor's name of the error, e.g. ``ENOMEM``.
    """

    def __init__(self, message: str, *, call: str = "", code: str = "", fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.call = call
        self.code = code


class PeerLost(DeviceError):
    """Another process that computes the same model has gone, or did not come in time."""


class ContractError(DeviceError):
    """A rule of `kvrt.spi` was broken: by the caller, or by a backend that gave a wrong result."""


class IntegrityError(KvrtError):
    """The page table, its counts, or the memory under it disagree. Always a bug."""


LONGEST = 400
"""Characters of a foreign exception that a message quotes; a traceback has the rest."""


def in_one_line(error: BaseException) -> str:
    """A foreign exception's type, and the first line of what it says."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if len(line) > LONGEST:
        line = line[:LONGEST] + "..."
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
