"""A backend for a vendor's GPUs, before anything is opened."""

from abc import ABC, abstractmethod

from kvrt.errors import BackendUnavailable
from kvrt.spi import Device, DeviceOptions, Probe
from kvrt_kernels.driver import probe
from kvrt_kernels.driver.probe import Vendor
from kvrt_kernels.gpu import Place


class GpuBackend(ABC):
    """See `kvrt.spi.Backend`. Loads neither torch nor the driver before it is asked.

    Args:
        vendor: whose GPUs.
        place: how torch sees the devices' memory, and what computes there.
        torch_needs: what a torch that is newer than the driver needs; the version follows.
        update: what to do then.
    """

    spi = 2

    def __init__(self, vendor: Vendor, place: Place, torch_needs: str, update: str) -> None:
        self.name = vendor.backend
        self._vendor = vendor
        self._place = place
        self._torch_needs = torch_needs
        self._update = update

    @abstractmethod
    def device(self, index: int, options: DeviceOptions, place: Place) -> Device:
        """Open a device that is there."""

    def probe(self) -> Probe:
        found = probe.look(self._vendor)
        if found.fix or not found.devices:
            return Probe(False, found.detail, found.fix, found.devices)
        software = self._place.software()
        detail = f"{found.detail}, {software.detail}"
        if software.fix:
            return Probe(False, detail, software.fix, found.devices)
        if software.version[:1] > found.version[:1]:
            built = ".".join(map(str, software.version))
            detail = f"{detail}: torch needs {self._torch_needs} {built}"
            return Probe(False, detail, self._update, found.devices)
        return Probe(True, detail, devices=found.devices)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        probe = self.probe()
        if not probe.available:
            raise BackendUnavailable(
                f"the {self.name} backend cannot be used: {probe.detail}",
                fix=probe.fix or "use --backend cpu",
            )
        if index >= probe.devices:
            are = "is 1" if probe.devices == 1 else f"are {probe.devices}"
            raise BackendUnavailable(
                f"there is no {self.name} device {index}: there {are}",
                fix=f"use a device from 0 to {probe.devices - 1}",
            )
        return self.device(index, options, self._place)
