"""One page with plots that needs nothing else: no scripts, and nothing from elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from kvrt.bench.advice import advice
from kvrt.bench.figures import MEANING, POINTS, TIMES, summary, times_of
from kvrt.bench.plots import Series, histogram, lines, scatter
from kvrt.bench.words import Run
from kvrt.units import MIB, format_bytes

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --grid: #8883; --text: #333; --s0: #2563eb; --s1: #d97706;
  --s2: #059669; --s3: #7c3aed; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --s0: #60a5fa; --s1: #fbbf24;
  --s2: #34d399; --s3: #c4b5fd; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); max-width: 1180px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: right;
  border-bottom: 1px solid var(--grid); } th:first-child, td:first-child,
  th.text, td.text { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 1em; } figure { margin: 0; max-width: 720px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font-size: 11px; } svg text { fill: var(--text); }
.grid { stroke: var(--grid); } .mark { stroke: var(--s1); stroke-dasharray: 3 3; }
text.mark { stroke: none; fill: var(--s1); }
rect.s0, circle.s0 { fill: var(--s0); } circle.s1 { fill: var(--s1); }
.line { fill: none; stroke-width: 1.5; } .line.s0 { stroke: var(--s0); }
.line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); } .line.s3 { stroke: var(--s3); }
.key { font-weight: 400; margin-left: 1em; } .key i { display: inline-block; width: .8em;
  height: .8em; margin-right: .3em; } i.s0 { background: var(--s0); }
i.s1 { background: var(--s1); } i.s2 { background: var(--s2); } i.s3 { background: var(--s3); }
code { overflow-wrap: anywhere; }
"""
WORDED = {"what it is", "what was measured", "what to try", "why there is none", "formula", "is"}
SLICES = 40
"""Of time, in each of which what came is counted."""


def page(run: Run) -> str:
    """The page, as HTML."""
    found = summary(run)
    title = f"{run.name}: {run.target.get('model', '')}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            *_head(run, found),
            "<h2>Latency</h2>",
            *_latencies(found),
            f'<div class="plots">{"".join(_histograms(run))}</div>',
            "<h2>Over time</h2>",
            f'<div class="plots">{"".join(_over_time(run))}</div>',
            "<h2>KV memory</h2>",
            *_memory(run, found["memory"]),
            "<h2>Energy and cost</h2>",
            *_energy(found["energy"]),
            *_costs(found["costs"]),
            "<h2>What holds it back</h2>",
            *_advice(run),
            "<h2>Setting</h2>",
            *_setting(run),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(run: Run, found: Mapping[str, Any]) -> Iterator[str]:
    counts, tokens = found["requests"], found["tokens"]
    cut = f", {counts['cut']} cut short because the run was stopped" if run.cut else ""
    yield (
        f"<p>{counts['good']} answers in {found['seconds']:.2f} s, {counts['failed']} failed{cut};"
        f" {run.date}, {escape(run.made_by)}.</p>"
    )
    rows = [
        ("requests/s", _number(found["requests_per_s"])),
        ("prompt tokens/s", _number(found["prompt_tokens_per_s"])),
        ("output tokens/s", _number(found["output_tokens_per_s"])),
        ("prompt tokens, computed", str(tokens["prompt"])),
        ("prompt tokens, cached", str(tokens["cached"])),
        ("output tokens", str(tokens["output"])),
        ("sent later than due, p99", _ms(found["late_p99"])),
    ]
    yield from _table(("figure", "value"), rows)


def _latencies(found: Mapping[str, Any]) -> Iterator[str]:
    names = ("mean", *(f"p{point}" for point in POINTS))
    yield from _table(
        ("time", *names, "what it is"),
        [
            (time.upper(), *(_ms(found[time][name]) for name in names), MEANING[time])
            for time in TIMES
        ],
    )


def _histograms(run: Run) -> Iterator[str]:
    for time in TIMES:
        values = times_of(run.records, time) * 1000
        yield histogram(f"{time.upper()}, how often", "ms", values.tolist())


def _over_time(run: Run) -> Iterator[str]:
    good = [each for each in run.good if each.ttft is not None]
    sent = [each.sent for each in good]
    firsts = [1000 * (each.ttft or 0.0) for each in good]
    ends = [1000 * each.e2e for each in good]
    yield scatter("TTFT", "s", "ms", [Series("TTFT", sent, firsts)])
    yield scatter("E2E", "s", "ms", [Series("E2E", sent, ends)])
    pieces = np.array([each.sent + piece for each in run.records for piece in each.pieces])
    whole = max((each.end for each in run.records), default=0.0)
    if len(pieces) and whole:
        counts, edges = np.histogram(pieces, bins=SLICES, range=(0.0, whole))
        rates = (counts * SLICES / whole).tolist()
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        yield lines("Pieces of answers per second", "s", "1/s", [Series("", middles, rates)])
        at = np.linspace(0.0, whole, 4 * SLICES)
        begun = np.array([each.sent for each in run.records])
        over = np.array([each.end for each in run.records])
        flying = (begun[:, None] <= at).sum(0) - (over[:, None] <= at).sum(0)
        yield lines("Requests under way", "s", "", [Series("", at.tolist(), flying.tolist())])


def _memory(run: Run, found: Mapping[str, Any]) -> Iterator[str]:
    if not run.held:
        yield f"<p>Not known: {escape(found['why'])}.</p>"
        return
    yield (
        f"<p>At the most, requests pinned {format_bytes(found['pinned_peak'])} of"
        f" {format_bytes(found['held_peak'])} held; the limit is {format_bytes(found['limit'])}."
        "</p>"
    )
    at = [each.at for each in run.held]
    shown = {"pinned by requests": "pinned", "cached": "cached", "held": "held"}
    series = [
        Series(name, at, [getattr(each, part) / MIB for each in run.held])
        for name, part in shown.items()
    ]
    yield f'<div class="plots">{lines("KV memory", "s", "MiB", series)}</div>'


def _energy(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (each["name"], "" if each["joules"] is None else f"{each['joules']:.1f} J",
         each["why"] or "")
        for each in found["counters"]
    ]  # fmt: skip
    yield from _table(("counter", "energy", "why there is none"), rows)
    if found["wh_per_1k_requests"] is not None:
        yield (
            f"<p>{found['wh_per_1k_requests']:.4g} Wh for 1000 requests,"
            f" {_number(found['joules_per_output_token'])} J for a token of an answer: all energy,"
            " shared out.</p>"
        )


def _costs(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "<p>No price was given (--cost-per-hour, --cost-per-kwh).</p>"
        return
    rows = [
        (name.replace("_", " "), _number(each["value"]), each["formula"])
        for name, each in found.items()
    ]
    yield from _table(("cost", "value", "formula"), rows)


def _advice(run: Run) -> Iterator[str]:
    rows = [(each.bottleneck, each.told, each.fix) for each in advice(run)]
    if rows:
        yield from _table(("bottleneck", "what was measured", "what to try"), rows)
    else:
        yield "<p>Nothing that was measured says.</p>"


def _setting(run: Run) -> Iterator[str]:
    parts = {"target": run.target, "load": run.load, "data": run.data, "machine": run.machine}
    rows = [
        (f"{part}.{name}", str(value)) for part, entries in parts.items()
        for name, value in entries.items()
    ]  # fmt: skip
    yield from _table(("setting", "is"), rows)


def _table(head: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns of words are named in `WORDED`."""
    kinds = [' class="text"' if each in WORDED else "" for each in head]
    yield "<table><thead><tr>"
    yield "".join(f"<th{kind}>{escape(each)}</th>" for kind, each in zip(kinds, head, strict=True))
    yield "</tr></thead><tbody>"
    for row in rows:
        cells = zip(kinds, row, strict=True)
        yield "<tr>" + "".join(f"<td{kind}>{escape(each)}</td>" for kind, each in cells) + "</tr>"
    yield "</tbody></table>"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f} ms"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
