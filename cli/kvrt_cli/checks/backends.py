"""Who is installed, by the registry: nothing is opened yet."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvrt.spi import SPI_VERSION
from kvrt_cli.checks.check import Check, Mark

if TYPE_CHECKING:
    from kvrt.registry import Candidate

GROUP = "backends"


def backends(examined: "Sequence[Candidate]", *, whole: bool = True) -> Iterator[Check]:
    """One check for each candidate, after `kvrt.registry.examine`.

    Args:
        whole: these are all there are; else those that were asked for, and nothing is said of the
            others.
    """
    for candidate in examined:
        yield _candidate(candidate)
    if any(candidate.available for candidate in examined):
        return
    text, fix = "no backend can be used, so nothing can run", "pip install --force-reinstall kvrt"
    if not whole:
        text, fix = f"cannot be used: {', '.join(one.name for one in examined)}", ""
    yield Check(GROUP, "none", Mark.BAD, text, fix)


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
