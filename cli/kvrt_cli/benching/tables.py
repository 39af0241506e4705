"""Rows of `kvrt bench` as Markdown, CSV or JSON. Each is printed as soon as it is measured."""

import csv
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from kvrt.units import format_bytes
from kvrt_cli.benching.workload import Row
from kvrt_cli.jsontext import to_json

# title, width, aligned to the right; wide enough for usual content, so that rows line up while
# they are printed one by one
MARKDOWN = (
    ("model", 24, False),
    ("size", 9, True),
    ("backend", 8, False),
    ("threads", 7, True),
    ("dtype", 8, False),
    ("batch", 5, True),
    ("test", 12, True),
    ("t/s", 17, True),
    ("median", 8, True),
)


def write_rows(rows: Iterator[Row], form: str) -> None:
    """Print the rows to stdout in one of `FORMATS`."""
    FORMATS[form](rows)


def _markdown(rows: Iterator[Row]) -> None:
    first = next(rows)
    _line(*(_cell(title, width, right) for title, width, right in MARKDOWN))
    _line(*("-" * (width - right) + ":" * right for _, width, right in MARKDOWN))
    for row in chain([first], rows):
        columns = row.columns
        values = (
            columns["model"],
            format_bytes(columns["weight_bytes"]),
            columns["backend"],
            columns["threads"],
            columns["dtype"],
            columns["batch"],
            columns["test"],
            f"{row.mean:.2f} ± {row.deviation:.2f}",
            f"{row.median:.2f}",
        )
        cells = zip(values, MARKDOWN, strict=True)
        _line(*(_cell(str(value), width, right) for value, (_, width, right) in cells))
    print(f"\n{first.columns['build']} on {first.columns['device']} ({first.columns['arch']})")


def _cell(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _csv(rows: Iterator[Row]) -> None:
    first = next(rows)
    writer = csv.DictWriter(sys.stdout, list(_flat(first)), lineterminator="\n")
    writer.writeheader()
    for row in chain([first], rows):
        writer.writerow(_flat(row))
        sys.stdout.flush()


def _json_lines(rows: Iterator[Row]) -> None:
    for row in rows:
        print(to_json(_whole(row)), flush=True)


def _json(rows: Iterator[Row]) -> None:
    print(to_json([_whole(row) for row in rows], indent=2))


def _flat(row: Row) -> dict[str, Any]:
    return row.columns | {
        "avg_ts": round(row.mean, 4),
        "stddev_ts": round(row.deviation, 4),
        "median_ts": round(row.median, 4),
    }


def _whole(row: Row) -> dict[str, Any]:
    return _flat(row) | {"samples_ts": [round(sample, 4) for sample in row.samples]}


FORMATS: dict[str, Callable[[Iterator[Row]], None]] = {
    "md": _markdown,
    "csv": _csv,
    "json": _json,
    "jsonl": _json_lines,
}
