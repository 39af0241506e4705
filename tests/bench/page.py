"""Tables of a page that a command writes anew, between two marks."""

import platform
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
from kvrt_kernels import isa


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells: object) -> Iterator[str]:
    yield row(*cells)
    yield row("---", *["---:"] * (len(cells) - 1))


def machine() -> str:
    """What the numbers are of, and the day."""
    brand = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = brand[1] if brand else platform.machine()
    return (
        f"{cpu}, {psutil.cpu_count(logical=False)} cores, {isa()} kernels,"
        f" {torch.get_num_threads()} threads; {time.strftime('%Y-%m-%d', time.gmtime())}."
    )


def rewrite(page: Path, command: str, lines: Iterable[str]) -> None:
    """Put lines between the page's marks for a command."""
    begin, end = f"<!-- begin: {command} -->", "<!-- end -->"
    made = "\n".join([begin, "", *lines, "", end])
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: made, page.read_text(), flags=re.DOTALL))
