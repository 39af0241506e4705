"""What is here of ROCm: a GPU, its runtime, and the Python binding."""

import ctypes
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so")
BINDING = "hip-python"
VENDOR = "0x1002"
DISPLAY_CLASSES = ("0x03", "0x12")  # 0x12: accelerators without a display
PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Found:
    """What `look` saw.

    Args:
        hardware: false if there is no sign of a GPU or of its runtime.
        detail: in words, what is here or what is wrong.
        fix: what to install or change; empty if nothing is missing.
        devices: how many the runtime offers.
    """

    hardware: bool
    detail: str
    fix: str = ""
    devices: int = 0


class DriverError(Exception):
    """The runtime answered a call with an error."""


def look() -> Found:
    """Load the runtime, ask it for its devices, and look for the binding. Never raises."""
    try:
        library = _load()
    except OSError as error:
        if not _gpu_on_bus():
            return Found(hardware=False, detail=f"no AMD GPU here ({error})")
        return Found(
            hardware=True,
            detail=f"there is an AMD GPU, but the ROCm runtime cannot be loaded ({error})",
            fix="install ROCm; in a container, start it with --device /dev/kfd --device /dev/dri",
        )
    try:
        devices, version = _ask(library)
    except (DriverError, AttributeError) as error:
        return Found(
            hardware=True,
            detail=f"the ROCm runtime does not work: {error}",
            fix="run rocminfo; join the group render; look at HIP_VISIBLE_DEVICES",
        )
    detail = f"{devices} {'device' if devices == 1 else 'devices'}, ROCm {version}"
    if not devices:
        return Found(True, detail, fix="look at HIP_VISIBLE_DEVICES")
    try:
        binding = importlib.metadata.version(BINDING)
    except importlib.metadata.PackageNotFoundError:
        detail = f"{detail}, the Python package {BINDING} is missing"
        return Found(True, detail, fix="pip install 'kvrt[rocm]'", devices=devices)
    return Found(True, f"{detail}, {BINDING} {binding}", devices=devices)


def _load() -> ctypes.CDLL:
    """The first library that can be loaded, or the last one's OSError."""
    problem = OSError("no library to look for")
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problem = error
    raise problem


def _ask(library: ctypes.CDLL) -> tuple[int, str]:
    """How many devices there are, and the version of the runtime."""
    count, version = ctypes.c_int(), ctypes.c_int()
    _check(library, "hipInit", library.hipInit(0))
    _check(library, "hipGetDeviceCount", library.hipGetDeviceCount(ctypes.byref(count)))
    _check(library, "hipRuntimeGetVersion", library.hipRuntimeGetVersion(ctypes.byref(version)))
    return count.value, f"{version.value // 10**7}.{version.value // 10**5 % 100}"


def _check(library: ctypes.CDLL, call: str, status: int) -> None:
    if status:
        library.hipGetErrorName.restype = ctypes.c_char_p
        name = library.hipGetErrorName(status) or b"unknown error"
        raise DriverError(f"{call}: {name.decode()} ({status})")


def _gpu_on_bus() -> bool:
    for device in PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue  # not ours to read, so not ours to report
        if vendor == VENDOR and kind.startswith(DISPLAY_CLASSES):
            return True
    return False
