"""The runtime's functions through the binding: one call, and one look at its status.

Imported only when a device is opened: importing the binding is slow, and it may not be there. The
binding is hip-python, of the 7th or the 10th generation.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from hip import hip

from kvrt.errors import DeviceError, KvrtError, OutOfMemory

binding: Any = hip  # which has types in some versions, and not those that matter
READ_WRITE = binding.hipMemAccessFlags.hipMemAccessFlagsProtReadWrite
RECOMMENDED = binding.hipMemAllocationGranularity_flags.hipMemAllocationGranularityRecommended
TO_HOST = binding.hipMemcpyKind.hipMemcpyDeviceToHost
TO_DEVICE = binding.hipMemcpyKind.hipMemcpyHostToDevice
WITHIN = binding.hipMemcpyKind.hipMemcpyDeviceToDevice
NON_BLOCKING = int(binding.hipStreamNonBlocking)
DISABLE_TIMING = int(binding.hipEventDisableTiming)

_RESTART = "the device must be opened anew, by another process; look at dmesg and rocm-smi"
FIXES = {
    "hipErrorOutOfMemory": "lower --memory-limit, or end other programs on the device",
    "hipErrorNotSupported": "the device or its driver lacks virtual memory management",
    "hipErrorIllegalAddress": _RESTART,
    "hipErrorLaunchFailure": _RESTART,
    "hipErrorLaunchTimeOut": _RESTART,
    "hipErrorECCNotCorrectable": _RESTART,
    "hipErrorUnknown": _RESTART,
}


def call(name: str, *arguments: Any, needed: int = 0) -> Any:
    """Call the runtime. Gives its one result, or a tuple of several, or None.

    Args:
        name: of the runtime's function.
        needed: how many bytes of memory the call is to give.

    Raises:
        OutOfMemory: the runtime has none left.
        DeviceError: anything else.
    """
    status, *results = getattr(binding, name)(*arguments)
    if status != binding.hipError_t.hipSuccess:
        raise _error(name, arguments, status, needed)
    return results[0] if len(results) == 1 else tuple(results) or None


def finished(event: Any) -> bool:
    """Whether all work that an event was recorded behind is done."""
    (status,) = binding.hipEventQuery(event)
    if status == binding.hipError_t.hipErrorNotReady:
        return False
    if status != binding.hipError_t.hipSuccess:
        raise _error("hipEventQuery", (event,), status, 0)
    return True


def attribute(index: int, name: str) -> int:
    """What the runtime says of a device, by the end of the attribute's name."""
    kind = getattr(binding.hipDeviceAttribute_t, f"hipDeviceAttribute{name}")
    return int(call("hipDeviceGetAttribute", kind, index))


@dataclass(frozen=True, slots=True)
class Properties:
    """What the runtime says of a device."""

    name: str
    arch: str
    multiprocessors: int


def properties(index: int) -> Properties:
    try:
        found = call("hipGetDeviceProperties", index)
    except TypeError:  # before the 10th generation, the caller brings the structure
        found = binding.hipDeviceProp_t()
        call("hipGetDeviceProperties", found, index)
    return Properties(
        name=_text(found.name),
        arch=_text(found.gcnArchName).partition(":")[0],  # what follows are settings
        multiprocessors=int(found.multiProcessorCount),
    )


def _text(value: Any) -> str:
    """Bytes before the 10th generation."""
    return value.decode() if isinstance(value, bytes) else str(value)


def allocation_of(index: int, *, shareable: bool) -> Any:
    """Properties of memory on a device: hipMemAllocationProp."""
    properties = binding.hipMemAllocationProp()
    properties.type = binding.hipMemAllocationType.hipMemAllocationTypePinned
    properties.location.type = binding.hipMemLocationType.hipMemLocationTypeDevice
    properties.location.id = index
    if shareable:
        # The binding has no name for requestedHandleTypes, the second int.
        kind = binding.hipMemAllocationHandleType.hipMemHandleTypePosixFileDescriptor
        ctypes.c_int.from_address(int(properties) + 4).value = int(kind)
    return properties


def access_by(index: int) -> Any:
    """Reading and writing by a device: hipMemAccessDesc."""
    access = binding.hipMemAccessDesc()
    access.location.type = binding.hipMemLocationType.hipMemLocationTypeDevice
    access.location.id = index
    access.flags = READ_WRITE
    return access


def _error(name: str, arguments: tuple[Any, ...], status: Any, needed: int) -> KvrtError:
    code = status.name
    shown = ", ".join(map(_shown, arguments))
    message = f"{name}({shown}) failed with {code}"
    fix = FIXES.get(code, "")
    if code == "hipErrorOutOfMemory":
        return OutOfMemory(message, needed=needed, fix=fix)
    return DeviceError(message, call=name, code=code, fix=fix)


def _shown(argument: Any) -> str:
    if isinstance(argument, int):
        return hex(argument) if argument >= 2**32 else str(argument)
    return type(argument).__name__


class Context:
    """A device as the runtime knows it: it has no context to hold, only a current device.

    Args:
        index: the device's.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self.closed = False

    def use(self) -> None:
        """Make it this thread's current device, as ``torch.cuda.set_device`` does."""
        call("hipSetDevice", self._index)

    def synchronize(self) -> None:
        self.use()
        call("hipDeviceSynchronize")

    def close(self) -> None:
        self.closed = True
