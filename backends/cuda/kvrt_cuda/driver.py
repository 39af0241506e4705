"""What is here of CUDA: a GPU, its driver, and the Python binding."""

import ctypes
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("libcuda.so.1",)
BINDING = "cuda-bindings"
VENDOR = "0x10de"
DISPLAY_CLASSES = ("0x03",)
OLDEST = (12, 0)
"""The CUDA version whose drivers Triton's code needs."""
PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Found:
    """What `look` saw.

    Args:
        hardware: false if there is no sign of a GPU or of its driver.
        detail: in words, what is here or what is wrong.
        fix: what to install or change; empty if nothing is missing.
        devices: how many the driver offers.
        version: the newest CUDA that the driver knows, e.g. (13, 0).
    """

    hardware: bool
    detail: str
    fix: str = ""
    devices: int = 0
    version: tuple[int, int] = (0, 0)


class DriverError(Exception):
    """The driver answered a call with an error."""


def look() -> Found:
    """Load the driver, ask it for its devices, and look for the binding. Never raises."""
    try:
        library = _load()
    except OSError as error:
        if not _gpu_on_bus():
            return Found(hardware=False, detail=f"no NVIDIA GPU here ({error})")
        return Found(
            hardware=True,
            detail=f"there is an NVIDIA GPU, but its driver cannot be loaded ({error})",
            fix="install the NVIDIA driver; in a container, start it with --gpus all",
        )
    try:
        devices, version = _ask(library)
    except (DriverError, AttributeError) as error:
        return Found(
            hardware=True,
            detail=f"the NVIDIA driver does not work: {error}",
            fix="run nvidia-smi; look at CUDA_VISIBLE_DEVICES; reinstall the driver",
        )
    named = f"driver for CUDA {version[0]}.{version[1]}"
    detail = f"{devices} {'device' if devices == 1 else 'devices'}, {named}"
    if not devices:
        return Found(True, detail, fix="look at CUDA_VISIBLE_DEVICES")
    if version < OLDEST:
        fix = f"update the NVIDIA driver to one for CUDA {OLDEST[0]}.{OLDEST[1]} or newer"
        return Found(True, f"{detail}: too old", fix, devices)
    try:
        binding = importlib.metadata.version(BINDING)
    except importlib.metadata.PackageNotFoundError:
        detail = f"{detail}, the Python package {BINDING} is missing"
        return Found(True, detail, fix="pip install 'kvrt[cuda]'", devices=devices)
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
    """How many devices there are, and the newest CUDA that the driver knows."""
    count, version = ctypes.c_int(), ctypes.c_int()
    _check(library, "cuInit", library.cuInit(0))
    _check(library, "cuDeviceGetCount", library.cuDeviceGetCount(ctypes.byref(count)))
    _check(library, "cuDriverGetVersion", library.cuDriverGetVersion(ctypes.byref(version)))
    return count.value, (version.value // 1000, version.value % 1000 // 10)


def _check(library: ctypes.CDLL, call: str, status: int) -> None:
    if status:
        name = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        raise DriverError(f"{call}: {(name.value or b'unknown error').decode()} ({status})")


def _gpu_on_bus() -> bool:
    for device in PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue  # not ours to read, so not ours to report
        if vendor == VENDOR and kind.startswith(DISPLAY_CLASSES):
            return True
    return False
