"""The driver's functions through the binding: one call, and one look at its status.

Imported only when a device is opened: importing the binding is slow, and it may not be there.
"""

from typing import Any

from cuda.bindings import driver
from kvrt_kernels.driver.calls import Calls, Direction, Handle, shown

from kvrt.errors import DeviceError, KvrtError, OutOfMemory

binding: Any = driver  # which has types in some versions, and not those that matter
RECOMMENDED = binding.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
NON_BLOCKING = int(binding.CUstream_flags.CU_STREAM_NON_BLOCKING)
DISABLE_TIMING = int(binding.CUevent_flags.CU_EVENT_DISABLE_TIMING)
COPIES: dict[Direction, str] = {
    "to host": "cuMemcpyDtoHAsync",
    "to device": "cuMemcpyHtoDAsync",
    "within": "cuMemcpyDtoDAsync",
}

_RESTART = "the device must be opened anew, by another process; look at dmesg and nvidia-smi -q"
FIXES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "lower --memory-limit, or end other programs on the device",
    "CUDA_ERROR_NOT_SUPPORTED": "the device or its driver lacks virtual memory management",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "reboot, or reload the driver: it was updated",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _RESTART,
    "CUDA_ERROR_LAUNCH_FAILED": _RESTART,
    "CUDA_ERROR_LAUNCH_TIMEOUT": _RESTART,
    "CUDA_ERROR_ECC_UNCORRECTABLE": _RESTART,
    "CUDA_ERROR_DEVICE_UNAVAILABLE": _RESTART,
    "CUDA_ERROR_UNKNOWN": _RESTART,
}


def call(name: str, *arguments: Any, needed: int = 0) -> Any:
    """Call the driver. Gives its one result, or a tuple of several, or None.

    Args:
        name: of the driver's function.
        needed: how many bytes of memory the call is to give.

    Raises:
        OutOfMemory: the driver has none left.
        DeviceError: anything else.
    """
    status, *results = getattr(binding, name)(*arguments)
    if status != binding.CUresult.CUDA_SUCCESS:
        raise _error(name, arguments, status, needed)
    return results[0] if len(results) == 1 else tuple(results) or None


def finished(event: Any) -> bool:
    """Whether all work that an event was recorded behind is done."""
    (status,) = binding.cuEventQuery(event)
    if status == binding.CUresult.CUDA_ERROR_NOT_READY:
        return False
    if status != binding.CUresult.CUDA_SUCCESS:
        raise _error("cuEventQuery", (event,), status, 0)
    return True


def attribute(device: Any, name: str) -> int:
    """What the driver says of a device, by the end of the attribute's name."""
    kind = getattr(binding.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", kind, device))


def allocation_of(index: int, *, shareable: bool) -> Any:
    """Properties of memory on a device: CUmemAllocationProp."""
    properties = binding.CUmemAllocationProp()
    properties.type = binding.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = binding.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = index
    if shareable:
        kinds = binding.CUmemAllocationHandleType
        properties.requestedHandleTypes = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return properties


def access_by(index: int) -> Any:
    """Reading and writing by a device: CUmemAccessDesc."""
    access = binding.CUmemAccessDesc()
    access.location.type = binding.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = index
    access.flags = binding.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access


def _error(name: str, arguments: tuple[Any, ...], status: Any, needed: int) -> KvrtError:
    code = status.name
    _, text = binding.cuGetErrorString(status)
    said = (text or b"unknown error").decode()
    message = f"{name}({', '.join(map(shown, arguments))}) failed with {code} ({said})"
    fix = FIXES.get(code, "")
    if code == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfMemory(message, needed=needed, fix=fix)
    return DeviceError(message, call=name, code=code, fix=fix)


class CudaCalls(Calls):
    """The driver's calls for a device, in its primary context, which torch uses too.

    Args:
        index: the device's.
        shareable: let chunks be exported to other processes.
    """

    def __init__(self, index: int, *, shareable: bool = False) -> None:
        self._index = index
        self._allocation = allocation_of(index, shareable=shareable)
        self._access = [access_by(index)]
        self._device = call("cuDeviceGet", index)
        self._context = int(call("cuDevicePrimaryCtxRetain", self._device))

    @property
    def own(self) -> int:
        return self._context

    def current(self) -> int:
        return int(call("cuCtxGetCurrent"))

    def make_current(self, what: int) -> None:
        call("cuCtxSetCurrent", binding.CUcontext(what))

    def another(self) -> "CudaCalls":
        return CudaCalls(self._index)

    def close(self) -> None:
        if not self.closed:
            call("cuDevicePrimaryCtxRelease", self._device)
            self.closed = True

    def synchronize(self) -> None:
        self.here(call, "cuCtxSynchronize")

    def granularity(self) -> int:
        asked = "cuMemGetAllocationGranularity"
        return int(self.here(call, asked, self._allocation, RECOMMENDED))

    def memory_info(self) -> tuple[int, int]:
        free, total = self.here(call, "cuMemGetInfo")
        return int(free), int(total)

    def reserve(self, nbytes: int, alignment: int) -> int:
        reserve = "cuMemAddressReserve"
        return int(self.here(call, reserve, nbytes, alignment, 0, 0, needed=nbytes))

    def release(self, base: int, nbytes: int) -> None:
        self.here(call, "cuMemAddressFree", base, nbytes)

    def create(self, nbytes: int) -> Handle:
        return self.here(call, "cuMemCreate", nbytes, self._allocation, 0, needed=nbytes)

    def destroy(self, chunk: Handle) -> None:
        self.here(call, "cuMemRelease", chunk)

    def map(self, address: int, nbytes: int, chunk: Handle) -> None:
        self.here(call, "cuMemMap", address, nbytes, 0, chunk, 0)

    def allow(self, address: int, nbytes: int) -> None:
        self.here(call, "cuMemSetAccess", address, nbytes, self._access, 1)

    def unmap(self, address: int, nbytes: int) -> None:
        self.here(call, "cuMemUnmap", address, nbytes)

    def host_create(self, nbytes: int) -> int:
        return int(self.here(call, "cuMemHostAlloc", nbytes, 0, needed=nbytes))

    def host_destroy(self, address: int) -> None:
        self.here(call, "cuMemFreeHost", address)

    def stream_create(self) -> Handle:
        return self.here(call, "cuStreamCreate", NON_BLOCKING)

    def stream_destroy(self, stream: Handle) -> None:
        self.here(call, "cuStreamDestroy", stream)

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        self.here(call, "cuStreamWaitEvent", stream, event, 0)

    def stream_synchronize(self, stream: Handle) -> None:
        self.here(call, "cuStreamSynchronize", stream)

    def copy(
        self, direction: Direction, target: int, source: int, nbytes: int, stream: Handle
    ) -> None:
        self.here(call, COPIES[direction], target, source, nbytes, stream)

    def event_create(self) -> Handle:
        return self.here(call, "cuEventCreate", DISABLE_TIMING)

    def event_destroy(self, event: Handle) -> None:
        self.here(call, "cuEventDestroy", event)

    def event_record(self, event: Handle, stream: Handle) -> None:
        self.here(call, "cuEventRecord", event, stream)

    def event_done(self, event: Handle) -> bool:
        return self.here(finished, event)

    def event_synchronize(self, event: Handle) -> None:
        self.here(call, "cuEventSynchronize", event)
