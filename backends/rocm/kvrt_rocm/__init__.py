"""The ROCm backend, as far as it goes: it looks for AMD GPUs, and cannot use them yet."""

from kvrt.errors import BackendUnavailable
from kvrt.spi import Device, DeviceOptions, Probe

from . import driver

NOT_YET = "this version of kvrt has no memory and no kernels for ROCm yet"


class RocmBackend:
    """See `kvrt.spi.Backend`. Importing this loads neither torch nor the driver."""

    name = "rocm"
    spi = 1

    def probe(self) -> Probe:
        found = driver.look()
        if not found.hardware:
            return Probe(available=False, detail=found.detail)
        fix = "use the cpu backend until a version can"
        if found.fix:
            fix = f"{fix}; it will need: {found.fix}"
        detail = f"{found.detail}; {NOT_YET}"
        return Probe(available=False, detail=detail, fix=fix, devices=found.devices)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        raise BackendUnavailable(
            f"{NOT_YET}: device {index} cannot be opened (found here: {driver.look().detail})",
            fix="use --backend cpu",
        )


backend = RocmBackend()
