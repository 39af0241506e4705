"""The runtime's functions through the binding: one call, and one look at its status.

Imported only when a device is opened: importing the binding is slow, and it may not be there. The
binding is hip-python, of the 7th or the 10th generation.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from hip import hip
from kvrt_kernels.driver.calls import Calls, Direction, Handle, shown

from kvrt.errors import DeviceError, KvrtError, OutOfMemory

binding: Any = hip  # which has types in some versions, and not those that matter
READ_WRITE = binding.hipMemAccessFlags.hipMemAccessFlagsProtReadWrite
RECOMMENDED = binding.hipMemAllocationGranularity_flags.hipMemAllocationGranularityRecommended
COPIES: dict[Direction, Any] = {
    "to host": binding.hipMemcpyKind.hipMemcpyDeviceToHost,
    "to device": binding.hipMemcpyKind.hipMemcpyHostToDevice,
    "within": binding.hipMemcpyKind.hipMemcpyDeviceToDevice,
}
CHUNK = 2 << 20
"""Bytes of a chunk at least: the runtime may allow 4 KiB, for which a call takes as long."""
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
    message = f"{name}({', '.join(map(shown, arguments))}) failed with {code}"
    fix = FIXES.get(code, "")
    if code == "hipErrorOutOfMemory":
        return OutOfMemory(message, needed=needed, fix=fix)
    return DeviceError(message, call=name, code=code, fix=fix)


class RocmCalls(Calls):
    """The runtime's calls for a device. It has no context to hold, only a current device.

    Args:
        index: the device's.
        shareable: let chunks be exported to other processes.
    """

    def __init__(self, index: int, *, shareable: bool = False) -> None:
        self._index = index
        self._allocation = allocation_of(index, shareable=shareable)
        self._access = access_by(index)

    @property
    def own(self) -> int:
        return self._index

    def current(self) -> int:
        return int(call("hipGetDevice"))

    def make_current(self, what: int) -> None:
        call("hipSetDevice", what)

    def another(self) -> "RocmCalls":
        return RocmCalls(self._index)

    def close(self) -> None:
        self.closed = True

    def synchronize(self) -> None:
        self.here(call, "hipDeviceSynchronize")

    def granularity(self) -> int:
        asked = "hipMemGetAllocationGranularity"
        smallest = self.here(call, asked, self._allocation, RECOMMENDED)
        return max(CHUNK, int(smallest))

    def memory_info(self) -> tuple[int, int]:
        free, total = self.here(call, "hipMemGetInfo")
        return int(free), int(total)

    def reserve(self, nbytes: int, alignment: int) -> int:
        reserve = "hipMemAddressReserve"
        return int(self.here(call, reserve, nbytes, alignment, 0, 0, needed=nbytes))

    def release(self, base: int, nbytes: int) -> None:
        self.here(call, "hipMemAddressFree", base, nbytes)

    def create(self, nbytes: int) -> Handle:
        return self.here(call, "hipMemCreate", nbytes, self._allocation, 0, needed=nbytes)

    def destroy(self, chunk: Handle) -> None:
        self.here(call, "hipMemRelease", chunk)

    def map(self, address: int, nbytes: int, chunk: Handle) -> None:
        self.here(call, "hipMemMap", address, nbytes, 0, chunk, 0)

    def allow(self, address: int, nbytes: int) -> None:
        self.here(call, "hipMemSetAccess", address, nbytes, self._access, 1)

    def allowed(self, address: int) -> bool:
        """Whether the device may read and write there. Fails where nothing is mapped."""
        access = self.here(call, "hipMemGetAccess", self._access.location, address)
        return bool(access == int(READ_WRITE))

    def unmap(self, address: int, nbytes: int) -> None:
        self.here(call, "hipMemUnmap", address, nbytes)

    def host_create(self, nbytes: int) -> int:
        return int(self.here(call, "hipHostMalloc", nbytes, 0, needed=nbytes))

    def host_destroy(self, address: int) -> None:
        self.here(call, "hipHostFree", address)

    def stream_create(self) -> Handle:
        return self.here(call, "hipStreamCreateWithFlags", NON_BLOCKING)

    def stream_destroy(self, stream: Handle) -> None:
        self.here(call, "hipStreamDestroy", stream)

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        self.here(call, "hipStreamWaitEvent", stream, event, 0)

    def stream_synchronize(self, stream: Handle) -> None:
        self.here(call, "hipStreamSynchronize", stream)

    def copy(
        self, direction: Direction, target: int, source: int, nbytes: int, stream: Handle
    ) -> None:
        self.here(call, "hipMemcpyAsync", target, source, nbytes, COPIES[direction], stream)

    def event_create(self) -> Handle:
        return self.here(call, "hipEventCreateWithFlags", DISABLE_TIMING)

    def event_destroy(self, event: Handle) -> None:
        self.here(call, "hipEventDestroy", event)

    def event_record(self, event: Handle, stream: Handle) -> None:
        self.here(call, "hipEventRecord", event, stream)

    def event_done(self, event: Handle) -> bool:
        return self.here(finished, event)

    def event_synchronize(self, event: Handle) -> None:
        self.here(call, "hipEventSynchronize", event)
