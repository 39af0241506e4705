"""What is here of a vendor: a GPU, its driver, and the Python binding.

Asked by ctypes, with three functions of the driver: it must be cheap, and work where the binding is
missing.
"""

import ctypes
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's names for what is looked for.

    Args:
        backend: the backend's name.
        brand: of the GPUs.
        driver: what people call the library.
        platform: what has versions: ``driver for CUDA`` 13.0, ``ROCm`` 7.2.
        libraries: file names, the first one that can be loaded is taken.
        binding: the distribution of the Python binding.
        pci_vendor: as the PCI bus has it.
        pci_classes: what its GPUs' PCI classes begin with.
        oldest: the first version that will do.
        calls: the functions that initialize, count devices, and give the version.
        version: major and minor of what the last one gives.
        error_name: the name of a status.
        install: what to do if the driver cannot be loaded.
        mend: what to do if it does not work.
        update: what to do if it is too old; the version follows.
        hides: the environment's variable that hides devices.
    """

    backend: str
    brand: str
    driver: str
    platform: str
    libraries: tuple[str, ...]
    binding: str
    pci_vendor: str
    pci_classes: tuple[str, ...]
    oldest: Version
    calls: tuple[str, str, str]
    version: Callable[[int], Version]
    error_name: Callable[[ctypes.CDLL, int], bytes | None]
    install: str
    mend: str
    update: str
    hides: str


@dataclass(frozen=True, slots=True)
class Found:
    """What `look` saw.

    Args:
        hardware: false if there is no sign of a GPU or of its driver.
        detail: in words, what is here or what is wrong.
        fix: what to install or change; empty if nothing is missing.
        devices: how many the driver offers.
        version: the driver's.
    """

    hardware: bool
    detail: str
    fix: str = ""
    devices: int = 0
    version: Version = (0, 0)


class DriverError(Exception):
    """The driver answered a call with an error."""


def look(vendor: Vendor) -> Found:
    """Load the driver, ask it for its devices, and look for the binding. Never raises."""
    try:
        library = _load(vendor.libraries)
    except OSError as error:
        if not _gpu_on_bus(vendor):
            return Found(hardware=False, detail=f"no {vendor.brand} GPU here ({error})")
        return Found(
            hardware=True,
            detail=f"there is an {vendor.brand} GPU, but {vendor.driver} cannot be loaded"
            f" ({error})",
            fix=vendor.install,
        )
    try:
        devices, version = _ask(vendor, library)
    except (DriverError, AttributeError) as error:
        return Found(
            hardware=True, detail=f"{vendor.driver} does not work: {error}", fix=vendor.mend
        )
    named = f"{vendor.platform} {version[0]}.{version[1]}"
    detail = f"{devices} {'device' if devices == 1 else 'devices'}, {named}"
    if not devices:
        return Found(True, detail, fix=f"look at {vendor.hides}")
    if version < vendor.oldest:
        fix = f"{vendor.update} {vendor.oldest[0]}.{vendor.oldest[1]} or newer"
        return Found(True, f"{detail}: too old", fix, devices)
    try:
        binding = importlib.metadata.version(vendor.binding)
    except importlib.metadata.PackageNotFoundError:
        detail = f"{detail}, the Python package {vendor.binding} is missing"
        return Found(True, detail, fix=f"pip install 'kvrt[{vendor.backend}]'", devices=devices)
    return Found(True, f"{detail}, {vendor.binding} {binding}", devices=devices, version=version)


def _load(names: tuple[str, ...]) -> ctypes.CDLL:
    """The first library that can be loaded, or the last one's OSError."""
    problem = OSError("no library to look for")
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problem = error
    raise problem


def _ask(vendor: Vendor, library: ctypes.CDLL) -> tuple[int, Version]:
    """How many devices there are, and the driver's version."""

    def call(name: str, *arguments: object) -> None:
        status = getattr(library, name)(*arguments)
        if status:
            text = vendor.error_name(library, status) or b"unknown error"
            raise DriverError(f"{name}: {text.decode()} ({status})")

    initialize, count_devices, get_version = vendor.calls
    count, version = ctypes.c_int(), ctypes.c_int()
    call(initialize, 0)
    call(count_devices, ctypes.byref(count))
    call(get_version, ctypes.byref(version))
    return count.value, vendor.version(version.value)


def _gpu_on_bus(vendor: Vendor) -> bool:
    for device in PCI.glob("*"):
        try:
            owner, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue  # not ours to read, so not ours to report
        if owner == vendor.pci_vendor and kind.startswith(vendor.pci_classes):
            return True
    return False
