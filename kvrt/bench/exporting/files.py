"""A run as files beside its figures: its result, and its page."""

from pathlib import Path

from kvrt.bench.figures import summary
from kvrt.bench.page import page
from kvrt.bench.words import Run, save

RESULT, PAGE = "kvrt-bench.json", "kvrt-bench.html"


def write_files(run: Run, folder: Path) -> list[Path]:
    """Write both.

    Raises:
        OSError: they cannot be written.
    """
    result, shown = folder / RESULT, folder / PAGE
    save(run, result, summary(run))
    shown.write_text(page(run), encoding="utf-8")
    return [result, shown]
