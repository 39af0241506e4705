"""What the processors take is counted where the kernel counts it, and else it is said why not."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvrt.batches.pace import OTHER_DEVICE, Pace
from kvrt.batches.price import Price
from kvrt.batches.words import Batch
from kvrt.errors import ConfigError
from kvrt.machine.energy import FORBIDDEN, NO_COUNTERS, Energy

BOUND = 262_143_328_850


class Counters:
    """Of a machine with two packages, as its kernel shows them."""

    zones = ("package-0", "package-1", "core", "dram", "psys")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number, name in enumerate(self.zones):
            zone = folder / f"intel-rapl:{number}"
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{BOUND}\n")
        self.set(package_0=BOUND - 500_000, package_1=7, core=5, dram=0, psys=0)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            zone = self.folder / f"intel-rapl:{self.zones.index(name.replace('_', '-'))}"
            (zone / "energy_uj").write_text(f"{value}\n")


def test_packages_and_memory_are_counted_and_counters_come_round(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "powercap")
    energy = Energy(counters.folder)
    assert energy.joules == 0
    counters.set(package_0=1_499_999, package_1=3_000_007, core=9**9, dram=250_000, psys=9**9)
    assert energy.joules == 2 + 3 + 0.25
    assert energy.joules == 5.25
    counters.set(package_1=4_000_007)
    assert (energy.joules, energy.why) == (6.25, None)


def test_where_nothing_is_counted_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "none", tmp_path):
        assert (Energy(folder).joules, Energy(folder).why) == (None, NO_COUNTERS)
    counters = Counters(tmp_path / "powercap")
    energy = Energy(counters.folder)
    (counters.folder / "intel-rapl:0/energy_uj").write_text("odd")
    assert (energy.joules, energy.why) == (None, NO_COUNTERS)

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert Energy(counters.folder).why == FORBIDDEN


def test_what_a_batch_costs_is_told_while_it_goes_on(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "powercap")
    begun, now = Batch("b", "", "", "in", "out", "errors", "", 0, None, total=10), 0.0
    by_hour, by_kwh, on_gpu = (
        Pace(begun, lambda: now, price=Price.read(price), energy=Energy(counters.folder))
        for price in ("1.80/h", "0.30/kWh", "0.30/kWh")
    )
    on_gpu.on("cpu")
    on_gpu.on("cuda")
    now = 1000.0
    counters.set(package_1=3_600_000_007)
    for pace in (by_hour, by_kwh, on_gpu):
        pace.watch(replace(begun, done=5))
    assert by_hour.standing.cost == pytest.approx(0.5)
    assert (by_kwh.standing.energy_j, by_kwh.standing.energy_why) == (3600, None)
    assert by_kwh.standing.cost == pytest.approx(0.0003)
    assert (on_gpu.standing.energy_j, on_gpu.standing.energy_why) == (None, OTHER_DEVICE)
    assert on_gpu.standing.cost is None
    by_kwh.stop()
    counters.set(package_1=7_200_000_007)
    assert by_kwh.standing.energy_j == 3600


@pytest.mark.parametrize(
    "text", ["", "1", "1.2/day", "-1/h", "1e3/h", "1/H", "1/kwh", "x/h", "1.2/h "]
)
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="kilowatt-hour"):
        Price.read(text)
