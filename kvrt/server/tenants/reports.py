"""What was taken, as JSON lines and as CSV."""

import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, date, datetime
from typing import Any, Literal

from kvrt.server.tenants.ledger import Day, Line, Wanted, days, lines

Detail = Literal["days", "requests"]
"""A row for each key, model and day; or for each request."""

Row = Mapping[str, Any]


def rows(sql: sqlite3.Connection, detail: Detail, wanted: Wanted) -> Iterator[Row]:
    """What is wanted, the oldest first. Of a request, `num` is what `Wanted.after` takes."""
    if detail == "days":
        yield from map(asdict, days(sql, wanted))
        return
    for num, line in lines(sql, wanted):
        at = datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds")
        yield {"num": num, **asdict(line), "at": at}


def as_csv(detail: Detail, found: Iterable[Row]) -> Iterator[str]:
    """Lines, the first with the columns' names."""
    columns = [each.name for each in fields(Day)]
    if detail == "requests":
        columns = ["num", *(each.name for each in fields(Line))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in found:
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        writer.writerow(row)
    yield text.getvalue()


def as_json(found: Iterable[Row]) -> Iterator[str]:
    """An object a line."""
    for row in found:
        yield json.dumps(row) + "\n"


def is_day(text: str) -> bool:
    """Whether it is a day as `Wanted` has it."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
