"""The driver's functions through the binding: one call, and one look at its status.

Imported only when a device is opened: importing the binding is slow, and it may not be there.
"""

from typing import Any

from cuda.bindings import driver

from kvrt.errors import DeviceError, KvrtError, OutOfMemory

binding: Any = driver  # which has types in some versions, and not those that matter
RECOMMENDED = binding.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
NON_BLOCKING = int(binding.CUstream_flags.CU_STREAM_NON_BLOCKING)
DISABLE_TIMING = int(binding.CUevent_flags.CU_EVENT_DISABLE_TIMING)

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
    shown = ", ".join(map(_shown, arguments))
    message = f"{name}({shown}) failed with {code} ({(text or b'unknown error').decode()})"
    fix = FIXES.get(code, "")
    if code == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfMemory(message, needed=needed, fix=fix)
    return DeviceError(message, call=name, code=code, fix=fix)


def _shown(argument: Any) -> str:
    if isinstance(argument, int):
        return hex(argument) if argument >= 2**32 else str(argument)
    return type(argument).__name__


class Context:
    """A device's primary context, which torch uses too.

    Args:
        index: the device's.
    """

    def __init__(self, index: int) -> None:
        self._device = call("cuDeviceGet", index)
        self._handle: Any = call("cuDevicePrimaryCtxRetain", self._device)

    @property
    def closed(self) -> bool:
        return self._handle is None

    def use(self) -> None:
        """Make it this thread's current one, as ``torch.cuda.set_device`` does."""
        call("cuCtxSetCurrent", self._handle)

    def synchronize(self) -> None:
        self.use()
        call("cuCtxSynchronize")

    def close(self) -> None:
        if self._handle is not None:
            call("cuDevicePrimaryCtxRelease", self._device)
            self._handle = None
