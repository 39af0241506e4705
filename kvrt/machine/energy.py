"""The energy that the machine's processors take.

(Running average power limits, RAPL: the kernel's ``powercap`` counts the microjoules of each
package, and of the memory beside it, and begins anew at a bound.)
"""

import re
import threading
from pathlib import Path

FOLDER = Path("/sys/class/powercap")
COUNTED = re.compile(r"package-\d+|dram")
"""Other zones are parts of packages, or have packages in them."""

NO_COUNTERS = "this machine does not count the energy of its processors"
FORBIDDEN = "the counters of energy may not be read: they are root's, by default"
JOULES_PER_KWH = 3.6e6


class Energy:
    """Counts from now on; the whole machine, whoever it works for. For several threads at once.

    Args:
        folder: where the counters are.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.why: str | None = None
        """Why there is no number."""
        self._lock = threading.Lock()
        self._microjoules = 0
        self._bounds: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        try:
            self._bounds = _zones(folder)
            self._last = {zone: _number(zone / "energy_uj") for zone in self._bounds}
            if not self._bounds:
                self.why = NO_COUNTERS
        except PermissionError:
            self.why = FORBIDDEN
        except (OSError, ValueError):
            self.why = NO_COUNTERS

    def without(self, why: str) -> None:
        """There is no number any more."""
        self.why = why

    @property
    def joules(self) -> float | None:
        """So far; None: `why`. To be asked now and then, before a counter comes round again: at
        the least every ten minutes."""
        with self._lock:
            return self._count()

    def _count(self) -> float | None:
        if self.why is not None:
            return None
        try:
            now = {zone: _number(zone / "energy_uj") for zone in self._bounds}
        except (OSError, ValueError):
            self.why = NO_COUNTERS
            return None
        for zone, value in now.items():
            self._microjoules += (value - self._last[zone]) % (self._bounds[zone] + 1)
        self._last = now
        return self._microjoules / 1e6


def _zones(folder: Path) -> dict[Path, int]:
    """The folders of what is counted, each with its bound."""
    if not folder.is_dir():
        return {}
    return {
        zone: _number(zone / "max_energy_range_uj")
        for zone in sorted(folder.iterdir())
        if (zone / "name").is_file() and COUNTED.fullmatch((zone / "name").read_text().strip())
    }


def _number(path: Path) -> int:
    return int(path.read_text())
