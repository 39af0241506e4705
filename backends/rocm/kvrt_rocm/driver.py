"""What is here of ROCm: a GPU, its runtime, and the Python binding."""

import ctypes
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from kvrt.errors import BackendUnavailable

LIBRARIES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so")
RUNTIME = "libamdhip64.so"
BINDING = "hip-python"
VENDOR = "0x1002"
DISPLAY_CLASSES = ("0x03", "0x12")  # 0x12: accelerators without a display
OLDEST = (6, 0)
"""The first ROCm whose device properties have the layout that the binding reads."""
PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Found:
    """What `look` saw.

    Args:
        hardware: false if there is no sign of a GPU or of its runtime.
        detail: in words, what is here or what is wrong.
        fix: what to install or change; empty if nothing is missing.
        devices: how many the runtime offers.
        version: of ROCm, e.g. (7, 2).
    """

    hardware: bool
    detail: str
    fix: str = ""
    devices: int = 0
    version: tuple[int, int] = (0, 0)


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
    named = f"ROCm {version[0]}.{version[1]}"
    detail = f"{devices} {'device' if devices == 1 else 'devices'}, {named}"
    if not devices:
        return Found(True, detail, fix="look at HIP_VISIBLE_DEVICES")
    if version < OLDEST:
        fix = f"update ROCm to {OLDEST[0]}.{OLDEST[1]} or newer"
        return Found(True, f"{detail}: too old", fix, devices)
    try:
        binding = importlib.metadata.version(BINDING)
    except importlib.metadata.PackageNotFoundError:
        detail = f"{detail}, the Python package {BINDING} is missing"
        return Found(True, detail, fix="pip install 'kvrt[rocm]'", devices=devices)
    return Found(True, f"{detail}, {BINDING} {binding}", devices=devices, version=version)


def _load() -> ctypes.CDLL:
    """The first library that can be loaded, or the last one's OSError."""
    problem = OSError("no library to look for")
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problem = error
    raise problem


def _ask(library: ctypes.CDLL) -> tuple[int, tuple[int, int]]:
    """How many devices there are, and the version of the runtime."""
    count, version = ctypes.c_int(), ctypes.c_int()
    _check(library, "hipInit", library.hipInit(0))
    _check(library, "hipGetDeviceCount", library.hipGetDeviceCount(ctypes.byref(count)))
    _check(library, "hipRuntimeGetVersion", library.hipRuntimeGetVersion(ctypes.byref(version)))
    return count.value, (version.value // 10**7, version.value // 10**5 % 100)


def _check(library: ctypes.CDLL, call: str, status: int) -> None:
    if status:
        library.hipGetErrorName.restype = ctypes.c_char_p
        name = library.hipGetErrorName(status) or b"unknown error"
        raise DriverError(f"{call}: {name.decode()} ({status})")


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


def _gpu_on_bus() -> bool:
    for device in PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue  # not ours to read, so not ours to report
        if vendor == VENDOR and kind.startswith(DISPLAY_CLASSES):
            return True
    return False
