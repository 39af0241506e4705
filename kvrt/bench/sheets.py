"""The requests of a run as CSV: a line each, times in milliseconds."""

import csv
import io

from kvrt.bench.words import Run

COLUMNS = ("talk", "turn", "due_ms", "sent_ms", "ttft_ms", "tpot_ms", "e2e_ms", "prompt_tokens",
           "cached_tokens", "output_tokens", "finish", "error")  # fmt: skip


def as_csv(run: Run) -> str:
    """With a line of names before the others."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for each in run.records:
        rows.writerow(
            (each.talk, each.turn, _ms(each.due), _ms(each.sent), _ms(each.ttft), _ms(each.tpot),
             _ms(each.e2e), each.prompt_tokens, each.cached_tokens, each.output_tokens,
             each.finish, each.error)
        )  # fmt: skip
    return text.getvalue()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
