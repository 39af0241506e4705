"""What counters of energy say: of the processors (RAPL), and of accelerators, by the management
libraries of their vendors. Where there is no counter, there is no number but the reason.

A counter counts all that its device does, whoever it works for. So it says something of a server
only if that runs on this machine, and by itself.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

from kvrt.bench.words import Counter
from kvrt.machine.energy import Energy

Read = Callable[[], list[float]]
"""Joules of each device since whenever."""

ELSEWHERE = "the server is not on this machine"


class Unknown(Exception):
    """Why there is no number."""


class Meter:
    """Counts from when it is made.

    Args:
        name: of the counter.
        read: it.
    """

    def __init__(self, name: str, read: Read) -> None:
        self.name = name
        self._read = read
        self._why: str | None = None
        self._begun: list[float] = []
        try:
            self._begun = read()
        except Unknown as why:
            self._why = str(why)

    def counted(self) -> Counter:
        """So far."""
        if self._why is None:
            try:
                pairs = zip(self._begun, self._read(), strict=True)
                return Counter(self.name, sum(now - begun for begun, now in pairs))
            except Unknown as why:
                self._why = str(why)
            except ValueError:
                self._why = "devices have come or gone"
        return Counter(self.name, None, self._why)


def meters(*, here: bool) -> Sequence[Meter]:
    """All that there are.

    Args:
        here: what is measured runs on this machine.
    """
    reads = {"processors (RAPL)": _rapl(), "accelerators (NVML)": nvml,
             "accelerators (amdsmi)": amdsmi}  # fmt: skip
    return [Meter(name, read if here else _elsewhere) for name, read in reads.items()]


def _elsewhere() -> list[float]:
    raise Unknown(ELSEWHERE)


def _rapl() -> Read:
    """The packages of this machine, and the memory beside them."""
    energy = Energy()

    def read() -> list[float]:
        if (joules := energy.joules) is None:
            raise Unknown(energy.why)
        return [joules]

    return read


def nvml() -> list[float]:
    """Accelerators that NVML knows: their own hardware counts (total energy, in mJ); no power is
    sampled."""
    module = _module("pynvml")
    try:
        module.nvmlInit()
        handles = [
            module.nvmlDeviceGetHandleByIndex(number)
            for number in range(module.nvmlDeviceGetCount())
        ]
        return _some([module.nvmlDeviceGetTotalEnergyConsumption(each) / 1e3 for each in handles])
    except module.NVMLError as error:
        raise Unknown(f"NVML says: {error}") from None


def amdsmi() -> list[float]:
    """Accelerators that amdsmi knows: their accumulators, in ticks of so many microjoules."""
    module = _module("amdsmi")
    try:
        module.amdsmi_init()
        counts = map(module.amdsmi_get_energy_count, module.amdsmi_get_processor_handles())
        return _some(
            [each["energy_accumulator"] * each["counter_resolution"] / 1e6 for each in counts]
        )
    except module.AmdSmiException as error:
        raise Unknown(f"amdsmi says: {error}") from None


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, KeyError, OSError) as error:  # the library under it may be missing
        raise Unknown(f"the Python module {name} cannot be used: {error}") from None


def _some(joules: list[float]) -> list[float]:
    if not joules:
        raise Unknown("it knows no device")
    return joules
