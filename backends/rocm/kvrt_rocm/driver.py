"""What to look for of ROCm: a GPU, its runtime, and the Python binding."""

import ctypes
from pathlib import Path

from kvrt_kernels.driver.probe import Vendor

from kvrt.errors import BackendUnavailable

RUNTIME = "libamdhip64.so"


def _error_name(library: ctypes.CDLL, status: int) -> bytes | None:
    library.hipGetErrorName.restype = ctypes.c_char_p
    name: bytes | None = library.hipGetErrorName(status)
    return name


VENDOR = Vendor(
    backend="rocm",
    brand="AMD",
    driver="the ROCm runtime",
    platform="ROCm",
    libraries=("libamdhip64.so.7", "libamdhip64.so.6", RUNTIME),
    binding="hip-python",
    pci_vendor="0x1002",
    pci_classes=("0x03", "0x12"),  # 0x12: accelerators without a display
    oldest=(6, 0),  # the first whose device properties have the layout that the binding reads
    calls=("hipInit", "hipGetDeviceCount", "hipRuntimeGetVersion"),
    version=lambda number: (number // 10**7, number // 10**5 % 100),
    error_name=_error_name,
    install="install ROCm; in a container, start it with --device /dev/kfd --device /dev/dri",
    mend="run rocminfo; join the group render; look at HIP_VISIBLE_DEVICES",
    update="update ROCm to",
    hides="HIP_VISIBLE_DEVICES",
)


def require_one_runtime(maps: Path = Path("/proc/self/maps")) -> None:
    """Torch may bring a runtime of its own. Two in one process know nothing of each other.

    Raises:
        BackendUnavailable: two are loaded.
    """
    words = (line.split() for line in maps.read_text().splitlines())
    found = sorted({word[-1] for word in words if RUNTIME in word[-1]})
    if len(found) > 1:
        raise BackendUnavailable(
            f"two ROCm runtimes are loaded, torch's and the binding's: {' and '.join(found)}",
            fix="let both find the same one: export LD_LIBRARY_PATH to the folder of torch's",
        )
