"""What is in a set, at flat memory."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kvrt.data.rows import Row
from kvrt.data.scores import lengths
from kvrt.data.sketch import Sketch

MOST_TEXTS = 1000
"""Different texts of one score that are counted; the rest is together."""

SHOWN = 20
OTHERS = "(others)"


class Statistics:
    """Of rows that come one after the other."""

    def __init__(self) -> None:
        self.rows = self.nbytes = self.answered = 0
        self._shapes: Counter[str] = Counter()
        self._roles: Counter[str] = Counter()
        self._numbers: dict[str, Sketch] = {}
        self._texts: dict[str, Counter[str]] = {}

    def add(self, row: Row) -> None:
        """One row more. How long it is counts as a score, if it has none of the name."""
        self.rows += 1
        self.nbytes += len(row.line) + 1
        self.answered += row.answer is not None
        self._shapes[row.shape] += 1
        self._roles.update(said.role for said in row.prompt if said.role)
        for name, score in {**lengths(row), **row.scores}.items():
            if isinstance(score, str | bool) or score is None:
                texts = self._texts.setdefault(name, Counter())
                text = "null" if score is None else str(score).lower()
                texts[text if text in texts or len(texts) < MOST_TEXTS else OTHERS] += 1
            else:
                self._numbers.setdefault(name, Sketch()).add(score)

    def as_json(self) -> dict[str, Any]:
        """All there is to say."""
        return {
            "rows": self.rows,
            "bytes": self.nbytes,
            "with_answer": self.answered,
            "shapes": dict(self._shapes.most_common()),
            "roles": dict(self._roles.most_common(SHOWN)),
            "scores": {name: each.as_json() for name, each in sorted(self._numbers.items())},
            "texts": {
                name: dict(counts.most_common(SHOWN))
                for name, counts in sorted(self._texts.items())
            },
        }


def statistics_of(rows: Iterable[Row]) -> Statistics:
    """Of a set."""
    found = Statistics()
    for row in rows:
        found.add(row)
    return found
