"""A device whose faults say whose they are: a plug-in is foreign code."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kvrt.errors import ContractError, DeviceError, KvrtError, OutOfMemory, in_one_line
from kvrt.spi import Copier, Device, Extension, PagedAttention, VirtualMemory
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper

SHORT = re.compile(r"can't allocate memory|out of memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
PARTS: dict[str, type] = {"memory": VirtualMemory, "copier": Copier, "attention": PagedAttention}


class Named(Wrapper):
    """Turns what a device raises into a `DeviceError` that names its owner, in one line.

    A `KvrtError` is passed on as it is: it was written for people. Running out of memory, as torch
    or Python say it, is `OutOfMemory`. The exception itself is the cause.

    Args:
        inner: the device that does the work.
        owner: whose it is, e.g. ``backend 'mine' of kvrt-mine 1.0``.

    Raises:
        ContractError: a part of the device, or one of its methods, is not there.
    """

    def __init__(self, inner: Device, owner: str) -> None:
        self.owner = owner
        with blaming(owner, "the device's parts"):
            _check_complete(inner, owner)
            super().__init__(inner)

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        try:
            return call(*args, **kwargs)
        except KvrtError:
            raise
        except (Exception, SystemExit) as error:
            raise _fault(self.owner, f"{name}()", error) from error

    def extension(self, kind: type[Extension]) -> Extension | None:
        with blaming(self.owner, "extension()"):
            return super().extension(kind)


@contextmanager
def blaming(owner: str, doing: str) -> Iterator[None]:
    """What `Named` does, for a piece of work that is more than one call of a device.

    Args:
        owner: see `Named`.
        doing: what is done, for the message.

    Raises:
        OutOfMemory: the device's memory is full.
        DeviceError: anything else that is no `KvrtError`.
    """
    try:
        yield
    except KvrtError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(owner, doing, error) from error


def owner_of(device: Device) -> str:
    """Whose a device is: its distribution too, if the registry opened it."""
    owner = getattr(device, "owner", "")
    return owner if isinstance(owner, str) and owner else f"backend {device.info.backend!r}"


def _fault(owner: str, doing: str, error: BaseException) -> KvrtError:
    message = f"{owner}: {doing} raised {in_one_line(error)}"
    if _ran_out(error):
        return OutOfMemory(message)
    return DeviceError(
        message, call=doing, code=type(error).__name__, fix=f"report it to those who made {owner}"
    )


def _ran_out(error: BaseException | None) -> bool:
    """Whether memory was short, perhaps before something else went wrong because of it.

    Only torch's allocator for GPUs has an exception for it: that for CPUs, a vendor's library that
    creates its workspace, and Triton, which loads code, say so in words. What ends a graph whose
    recording ran out of memory raises something else.
    """
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemory | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and SHORT.search(str(error)):
            return True
        error = error.__context__
    return False


def _check_complete(device: Device, owner: str) -> None:
    _check_methods(device, Device, owner, "the device")
    for part, kind in PARTS.items():
        _check_methods(getattr(device, part), kind, owner, part)


def _check_methods(found: object, kind: type, owner: str, what: str) -> None:
    for name in (name for name in vars(kind) if not name.startswith("_")):
        if not hasattr(found, name):
            raise ContractError(
                f"{owner}: {what} is {type(found).__name__}, which lacks {name} of {kind.__name__}"
            )
