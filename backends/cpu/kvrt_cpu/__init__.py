"""The CPU backend: Linux virtual memory and native kernels. Every machine has one."""

import importlib.util
import platform

from kvrt.errors import BackendUnavailable
from kvrt.spi import Device, DeviceOptions, Probe

from . import host

_ARCHITECTURES = ("x86_64", "aarch64")


class CpuBackend:
    """See `kvrt.spi.Backend`. Importing this loads neither torch nor the kernels."""

    name = "cpu"
    spi = 2

    def probe(self) -> Probe:
        system, machine = platform.system(), platform.machine()
        if system != "Linux" or machine not in _ARCHITECTURES:
            return Probe(
                available=False,
                detail=f"needs Linux on {' or '.join(_ARCHITECTURES)}, this is {system} {machine}",
                fix="run kvrt on a Linux machine, in a container or under WSL 2",
            )
        try:
            processor, count = host.processor(), host.processors()
        except OSError as error:
            return Probe(available=False, detail=f"cannot read /proc: {error}", fix="mount /proc")
        native = importlib.util.find_spec("kvrt_kernels._native") is not None
        kernels = "compiled kernels" if native else "no compiled kernels: slow, in plain torch"
        return Probe(
            available=True,
            detail=f"{processor}, {count} x {machine}, {kernels}",
            devices=1,
        )

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        probe = self.probe()
        if not probe.available:
            raise BackendUnavailable(
                f"the cpu backend cannot be used: {probe.detail}", fix=probe.fix
            )
        if index != 0:
            raise BackendUnavailable(
                f"there is no cpu device {index}: all processors together are device 0",
                fix="use device 0",
            )
        from .device import CpuDevice

        return CpuDevice(options)


backend = CpuBackend()
