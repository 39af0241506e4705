"""The result in words."""

from collections.abc import Iterator
from typing import Any

HEAD = (
    "| server | clients | requests/s | first token p50 | p95 | p99 | between p50 | p95 | p99 |",
    "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    return "\n".join(lines(found)) + "\n"


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"# Serving, {found['date']}"
    yield ""
    yield f"{found['machine']}; commit {found['commit']}; {found['shape']}'s shape;"
    yield f"{found['threads']} threads. Written by `ci/serving`."
    if cost := found.get("cost"):
        yield ""
        own_rate, kept = f"{cost['embedded_rate']:.0f}", f"{cost['kept']:.3f}"
        alone, first = _ms(cost["embedded_alone"]), _ms(cost["embedded_first"])
        yield f"16 streams of {cost['new']} tokens through HTTP keep {kept} of the embedded"
        yield f"throughput ({own_rate} tokens/s). At the median, the time to a first token grows"
        yield f"by {_ms(cost['alone_grows'])} for a request alone (from {alone}), and by"
        yield f"{_ms(cost['first_grows'])} for 16 that come at once (from {first})."
    if rows := found.get("beside"):
        yield ""
        yield from HEAD
        for row in rows:
            if "skipped" in row:
                yield f"| {row['server']} | left out: {row['skipped']} |||||||"
                continue
            times = [row[name][part] for name in ("first", "gap") for part in ("p50", "p95", "p99")]
            shown = " | ".join(_ms(each) for each in times)
            yield f"| {row['server']} | {row['clients']} | {row['rate']:.2f} | {shown} |"
        yield ""
        yield "Weights are Q8_0; prompts have 64 to 256 tokens, answers 32. *Between*: two pieces"
        yield "of an answer, which are a token or, where a client reads slowly, several."


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
