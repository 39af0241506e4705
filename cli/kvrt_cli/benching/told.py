"""What a run came to, for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from kvrt.units import format_bytes

NAMES = ("mean", "p50", "p90", "p95", "p99")
TIMES = ("ttft", "tpot", "itl", "e2e")


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a result's summary (`kvrt.bench.figures.summary`)."""
    counts = found["requests"]
    cut = f", {counts['cut']} cut short" if counts["cut"] else ""
    yield (
        f"{counts['good']} answers in {found['seconds']:.2f} s, {counts['failed']} failed{cut}:"
        f" {number(found['requests_per_s'])} requests/s,"
        f" {number(found['output_tokens_per_s'])} new tokens/s,"
        f" {number(found['prompt_tokens_per_s'])} prompt tokens/s"
        f" ({found['tokens']['cached']} of {found['tokens']['prompt'] + found['tokens']['cached']}"
        " cached)"
    )
    yield ""
    yield f"{'ms':6}" + "".join(f"{name:>10}" for name in NAMES)
    for time in TIMES:
        yield f"{time.upper():6}" + "".join(f"{ms(found[time][name]):>10}" for name in NAMES)
    if "why" not in (parts := found["first_token"]):
        yield (
            f"TTFT, {ms(sum(parts.values()))} on average: {ms(parts['queued'])} in the queue,"
            f" {ms(parts['computing'])} computing, {ms(parts['between'])} between who asks and who"
            " is asked"
        )
    yield ""
    yield _memory(found["memory"])
    yield _energy(found["energy"])
    if found["costs"] is not None:
        for name, each in found["costs"].items():
            yield f"cost {name.replace('_', ' ')}: {number(each['value'])} = {each['formula']}"


def _memory(found: Mapping[str, Any]) -> str:
    if "why" in found:
        return f"KV memory: not known: {found['why']}"
    return (
        f"KV memory: requests pinned {format_bytes(found['pinned_peak'])} at the most, of"
        f" {format_bytes(found['held_peak'])} held; the limit is {format_bytes(found['limit'])}"
    )


def _energy(found: Mapping[str, Any]) -> str:
    if found["joules"] is None:
        why = "; ".join(f"{each['name']}: {each['why']}" for each in found["counters"])
        return f"energy: not known: {why}"
    return (
        f"energy: {found['joules']:.1f} J, {number(found['wh_per_1k_requests'])} Wh for 1000"
        f" requests, {number(found['joules_per_output_token'])} J for a new token"
    )


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
