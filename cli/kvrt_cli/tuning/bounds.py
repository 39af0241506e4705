"""What the device of a configuration can do, measured as `kvrt doctor` measures it."""

from functools import cache
from typing import TYPE_CHECKING

from kvrt.config import Environment, RuntimeConfig
from kvrt.spi import Bandwidth

if TYPE_CHECKING:
    from kvrt.profiling.totals import Limits
    from kvrt.runtime import Runtime


def kind_of(runtime: "Runtime") -> str:
    """What its weights are multiplied as: a dtype, or ``codes``."""
    packed = runtime.config.quantize is not None or runtime.model.path.is_file()
    return "codes" if packed else runtime.model.dtype


def limits_of(config: RuntimeConfig, kind: str) -> "Limits":
    """Of the device, with weights of that kind; it is opened for that, so ask while nothing runs.
    What it cannot measure is None."""
    from kvrt.profiling.totals import Limits

    backend = Environment().backend_for(config.backend)
    found = _bandwidth(backend, config.device, config.threads)
    if found is None:
        return Limits()
    known = {"float32": found.flops_per_s, **found.products}
    return Limits(found.read_bytes_per_s, known.get(kind))


@cache
def _bandwidth(backend: str, index: int, threads: int | None) -> Bandwidth | None:
    """It takes seconds, and does not change."""
    from kvrt.registry import open_device
    from kvrt.spi import DeviceOptions, Measurable

    device = open_device(backend, index, DeviceOptions(threads=threads))
    try:
        measurable = device.extension(Measurable)  # type: ignore[type-abstract]
        return None if measurable is None else measurable.measure()
    finally:
        device.close()
