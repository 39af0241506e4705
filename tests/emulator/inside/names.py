"""The two drivers' names for the same things."""

CALLS = {
    "init": {"cuda": "cuInit", "rocm": "hipInit"},
    "reserve": {"cuda": "cuMemAddressReserve", "rocm": "hipMemAddressReserve"},
    "free": {"cuda": "cuMemAddressFree", "rocm": "hipMemAddressFree"},
    "create": {"cuda": "cuMemCreate", "rocm": "hipMemCreate"},
    "release": {"cuda": "cuMemRelease", "rocm": "hipMemRelease"},
    "map": {"cuda": "cuMemMap", "rocm": "hipMemMap"},
    "access": {"cuda": "cuMemSetAccess", "rocm": "hipMemSetAccess"},
    "unmap": {"cuda": "cuMemUnmap", "rocm": "hipMemUnmap"},
    "info": {"cuda": "cuMemGetInfo", "rocm": "hipMemGetInfo"},
    "pin": {"cuda": "cuMemHostAlloc", "rocm": "hipHostMalloc"},
    "unpin": {"cuda": "cuMemFreeHost", "rocm": "hipHostFree"},
    "to_host": {"cuda": "cuMemcpyDtoHAsync", "rocm": "hipMemcpyAsync"},
    "record": {"cuda": "cuEventRecord", "rocm": "hipEventRecord"},
    "event": {"cuda": "cuEventCreate", "rocm": "hipEventCreateWithFlags"},
    "stream": {"cuda": "cuStreamCreate", "rocm": "hipStreamCreateWithFlags"},
    "wait": {"cuda": "cuStreamWaitEvent", "rocm": "hipStreamWaitEvent"},
}

COPIES = {
    "to_host": {"cuda": "cuMemcpyDtoHAsync", "rocm": "hipMemcpyAsync(.* kind=2)"},
    "to_device": {"cuda": "cuMemcpyHtoDAsync", "rocm": "hipMemcpyAsync(.* kind=1)"},
    "within": {"cuda": "cuMemcpyDtoDAsync", "rocm": "hipMemcpyAsync(.* kind=3)"},
}
"""How the trace shows a copy: ROCm has one call, and the numbers of `hipMemcpyKind`."""

ERRORS = {
    1: {"cuda": "CUDA_ERROR_INVALID_VALUE", "rocm": "hipErrorInvalidValue"},
    2: {"cuda": "CUDA_ERROR_OUT_OF_MEMORY", "rocm": "hipErrorOutOfMemory"},
    719: {"cuda": "CUDA_ERROR_LAUNCH_FAILED", "rocm": "hipErrorLaunchFailure"},
}

INVALID, OUT_OF_MEMORY, LAUNCH_FAILED = ERRORS
