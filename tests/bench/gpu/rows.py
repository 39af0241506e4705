"""Results, one JSON object a line, written as soon as they are known."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""Of a row: `group`, `case` and `by` say what was measured; `skipped` why it was not; the rest are
numbers, times in seconds. A row with `aim` states a goal: `value` is to be at least, or with `most`
at most, that."""


class Rows:
    """Collects rows and appends each to a file at once, so that a run cut short leaves them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.all: list[Row] = []

    def add(self, group: str, case: str, by: str, **measured: Any) -> Row:
        row: Row = {"group": group, "case": case, "by": by, **measured}
        self.all.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(shown(row), flush=True)
        return row

    def skip(self, group: str, case: str, by: str, why: object) -> None:
        self.add(group, case, by, skipped=one_line(why))

    def aim(self, group: str, case: str, value: float, aim: float, *, most: bool = False) -> None:
        """State a goal and what was reached."""
        met = value <= aim if most else value >= aim
        self.add(group, case, "kvrt", value=value, aim=aim, most=most, met=met)

    def mean(self, group: str, what: str) -> float | None:
        """The geometric mean of a number over all rows of a group that have it."""
        return geometric_mean(
            row[what] for row in self.all if row["group"] == group and what in row
        )


def geometric_mean(values: Iterable[float]) -> float | None:
    """None if there are no values."""
    found = list(values)
    return statistics.geometric_mean(found) if found else None


def one_line(error: object) -> str:
    """What an error says, on one short line."""
    kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return " ".join(f"{kind}{error}".split())[:200]


def shown(row: Row) -> str:
    rest = ", ".join(
        f"{name} {number(value)}"
        for name, value in row.items()
        if name not in ("group", "case", "by")
    )
    return f"{row['group']} | {row['case']} | {row['by']} | {rest}"


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
