"""What to look for of CUDA: a GPU, its driver, and the Python binding."""

import ctypes

from kvrt_kernels.driver.probe import Vendor


def _error_name(library: ctypes.CDLL, status: int) -> bytes | None:
    name = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(name))
    return name.value


VENDOR = Vendor(
    backend="cuda",
    brand="NVIDIA",
    driver="the NVIDIA driver",
    platform="driver for CUDA",
    libraries=("libcuda.so.1",),
    binding="cuda-bindings",
    pci_vendor="0x10de",
    pci_classes=("0x03",),
    oldest=(12, 0),  # Triton's code needs it
    calls=("cuInit", "cuDeviceGetCount", "cuDriverGetVersion"),
    version=lambda number: (number // 1000, number % 1000 // 10),
    error_name=_error_name,
    install="install the NVIDIA driver; in a container, start it with --gpus all",
    mend="run nvidia-smi; look at CUDA_VISIBLE_DEVICES; reinstall the driver",
    update="update the NVIDIA driver to one for CUDA",
    hides="CUDA_VISIBLE_DEVICES",
)
