"""Results as JSON and as a page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.peers.engines import EXACT, FORMATS
from tests.bench.peers.shapes import SHAPES, needed_bytes
from tests.bench.peers.turns import Row
from tests.bench.peers.work import Work

AGREED = 0.8
"""Of the tokens of fp32, at least: sums in another order decide otherwise where two logits are all
but alike, and what follows such a token differs."""
QUIET = 0.15
"""Cores that others used meanwhile, at most, before a figure is marked."""

Run = Mapping[str, Any]
"""`machine`, `date`, `commit`, `threads`, `repeats`, `seconds`, `read_bytes_per_s`, `rows`."""


def write(run: Run, works: Sequence[Work], folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    data.write_text(json.dumps(run, indent=1) + "\n")
    page.write_text("\n".join(page_of(run, works)) + "\n")
    return [data, page]


def page_of(run: Run, works: Sequence[Work]) -> list[str]:
    rows: Sequence[Row] = run["rows"]
    versions = dict(sorted(pair for row in rows for pair in row.get("versions", {}).items()))
    lines = [
        f"# Beside other engines, {run['date']}",
        "",
        f"{run['machine']}; {run['threads']} threads each; commit {run['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        f"Made by `ci/peers` in {run['seconds'] / 60:.0f} minutes: medians of {run['repeats']}, "
        "the engines of a format taking turns. `docs/benchmarks/peers.md` says what was measured.",
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        lines += ["", f"## {shape}", "", *table(of_shape, works)]
        lines += ["", *ratios(of_shape, works)]
        lines += [f"\n{line}." for line in disagreeing(of_shape)]
    lines += left_out(rows)
    return lines


def table(rows: Sequence[Row], works: Sequence[Work]) -> list[str]:
    heads = [f"{work.name}, {work.unit}" for work in works]
    lines = ["| engine | " + " | ".join(heads) + " | peak MiB, and over weights and KV |",
             "| --- |" + " --- |" * (len(works) + 1)]  # fmt: skip
    for row in rows:
        if "cells" not in row:
            continue
        cells = [shown(row["cells"][work.name]) for work in works]
        peak = max(cell["peak_bytes"] for cell in row["cells"].values())
        tokens = max(sum(work.lengths) + len(work.lengths) * work.new for work in works)
        needed = needed_bytes(SHAPES[row["shape"]], *FORMATS[row["format"]], tokens)
        memory = f"{peak / 2**20:.0f}, {(peak - needed) / 2**20:.0f}"
        lines.append(f"| {row['engine']} | {' | '.join(cells)} | {memory} |")
    return lines


def shown(cell: Row) -> str:
    return f"{cell['rate']:.4g}" + (" *" if cell["foreign_cores"] > QUIET else "")


def ratios(rows: Sequence[Row], works: Sequence[Work]) -> list[str]:
    """kvrt beside the best of the others, in each format."""
    lines = ["| kvrt over the best other | " + " | ".join(work.name for work in works) + " |",
             "| --- |" + " --- |" * len(works)]  # fmt: skip
    for format_ in dict.fromkeys(row["format"] for row in rows):
        there = [row for row in rows if row["format"] == format_ and "cells" in row]
        words = []
        for work in works:
            rates = {row["peer"]: row["cells"][work.name]["rate"] for row in there}
            mine = rates.pop("kvrt", None)
            best = max(rates, key=lambda peer: rates[peer], default=None)
            words.append(f"{mine / rates[best]:.2f} ({best})" if mine is not None and best else "-")
        lines.append(f"| {format_} | {' | '.join(words)} |")
    return lines


def left_out(rows: Iterable[Row]) -> list[str]:
    lines = [
        f"- {row['shape']}: {row['engine']}: {row['skipped']}" for row in rows if "skipped" in row
    ]
    return ["", "Left out:", "", *lines] if lines else []


def unconfirmed(rows: Sequence[Row]) -> bool:
    """Whether nobody who computes in float32, too, says what the first engine of a shape says."""
    exact = [row for row in rows if row["format"] == EXACT and "agreement" in row]
    for shape in {row["shape"] for row in exact}:
        others = [row["agreement"] for row in exact if row["shape"] == shape][1:]
        if others and max(others) < AGREED:
            return True
    return False


def disagreeing(rows: Iterable[Row]) -> list[str]:
    """Which engines that compute in float32 do not say what the first one says."""
    return [
        f"{row['shape']}: {row['engine']}: {row['agreement']:.0%} of the tokens are those of the "
        f"first engine, and {AGREED:.0%} should be"
        for row in rows
        if row["format"] == EXACT and row.get("agreement", 1) < AGREED
    ]
