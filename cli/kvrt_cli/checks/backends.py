"""Who is installed, by the registry: nothing is opened yet."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvrt.spi import SPI_VERSION
from kvrt_cli.checks.check import Check, Mark

if TYPE_CHECKING:
    from kvrt.registry import Candidate

GROUP = "backends"


def backends(examined: "Sequence[Candidate]") -> Iterator[Check]:
    """One check for each candidate, after `kvrt.registry.examine`."""
    for candidate in examined:
        yield _candidate(candidate)
    if not any(candidate.available for candidate in examined):
        yield Check(
            GROUP, "none", Mark.BAD, "no backend can be used, so nothing can run",
            fix="pip install --force-reinstall kvrt",
        )  # fmt: skip


def _candidate(candidate: "Candidate") -> Check:
    version = f", interface {candidate.spi}" if candidate.spi is not None else ""
    text = f"{candidate.name} ({candidate.origin}{version}): {candidate.reason}"
    data = {
        "distribution": candidate.distribution,
        "version": candidate.version,
        "entry_point": candidate.value,
        "spi": candidate.spi,
        "available": candidate.available,
        "devices": candidate.probe.devices if candidate.probe else 0,
    }
    details = f"{candidate.value}, for version {SPI_VERSION} of the interface"
    fix = ""
    if candidate.available:
        mark = Mark.OK
    elif candidate.error:
        mark, details = Mark.BAD, candidate.traceback or details
        fix = f"pip install --upgrade {candidate.distribution} (or pip uninstall it)"
    else:
        mark, fix = Mark.SKIP, candidate.probe.fix if candidate.probe else ""
    return Check(GROUP, candidate.name, mark, text, fix, details, data)
