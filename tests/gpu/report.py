"""Results as a page for people: what passed, what was reached, and all numbers."""

import json
import re
from pathlib import Path
from typing import Any

Result = dict[str, Any]
UNITS = {
    "bytes_per_s": (1e-9, "GB/s"),
    "kv_peak_bytes": (2**-30, "GiB"),
    "load_seconds": (1, "s"),
}
TIMES = {"seconds", "step", "device", "overhead", "submit", "create", "map", "unmap", "destroy",
         "set_access", "pooled", "not_pooled"}  # fmt: skip
PLAIN = {"group", "case", "by", "value", "aim", "most", "met"}


def write(result: Result, folder: Path) -> list[Path]:
    """Write ``<date>-<device>.json`` and ``.md``; a trial with small sizes is named so."""
    machine = result["machine"]
    device = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", machine["device"].lower()))
    stem = f"{machine['date']}-{machine['backend']}-{device.strip('-')}"
    if result["small"]:
        stem += "-small"
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    paths[0].write_text(json.dumps(result, indent=1) + "\n")
    paths[1].write_text(page(result))
    return paths


def merged(results: list[Result]) -> Result:
    """One result of several runs on one machine; of what two have, the later run's counts."""
    steps: dict[str, Any] = {}
    rows: dict[tuple[str, str, str], Any] = {}
    for result in results:
        for step in result["steps"]:
            if step["status"] != "left out" or step["name"] not in steps:
                steps[step["name"]] = step
        groups = {row["group"] for row in result["rows"]}
        rows = {key: row for key, row in rows.items() if key[0] not in groups}
        for number, row in enumerate(result["rows"]):
            rows[row["group"], row["case"], f"{row['by']} {number}"] = row
    return {**results[-1], "steps": list(steps.values()), "rows": list(rows.values())}


def page(result: Result) -> str:
    machine, rows = result["machine"], result["rows"]
    memory = machine.get("memory_bytes", 0) / 2**30
    lines = [
        f"# {machine['device']}, {machine['date']}",
        "",
        f"Backend `{machine['backend']}`, {machine.get('arch', 'unknown')}, {memory:.0f} GiB; "
        f"{machine.get('driver', 'driver unknown')}; Python {machine.get('python', '?')}, torch "
        f"{machine.get('torch', '?')}, Triton {machine.get('triton', '?')}; commit "
        f"{result['commit']}.",
        "",
        f"Made by `{result['command']}`. Times are medians; fractions and ratios were measured in "
        'the same run as what they compare with. "Times a peer" is the peer\'s time over ours: '
        "more is better.",
    ]
    if result["small"]:
        lines += ["", "**A trial with small sizes: its numbers say nothing.**"]
    lines += ["", "## Steps", "", steps_table(result["steps"])]
    for step in result["steps"]:
        if step["tail"]:
            lines += ["", f"`{step['name']}`:", "", "```", *step["tail"], "```"]
        differences = (step["data"] or {}).get("differences") if step["data"] else None
        if differences:
            lines += ["", "| call | expected | answer |", "| --- | --- | --- |"]
            lines += [
                f"| {name} | {both['expected']} | {both['answer']} |"
                for name, both in differences.items()
            ]
    aims = [row for row in rows if "aim" in row]
    if aims:
        lines += ["", "## Aims", "", "| what | reached | aim | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['group']}: {row['case']} | {shown('value', row['value'])} | "
            f"{'at most' if row['most'] else 'at least'} {row['aim']:g} | "
            f"{'met' if row['met'] else '**not met**'} |"
            for row in aims
        ]
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += ["", f"## {group}", "", "| case | by | measured |", "| --- | --- | --- |"]
        lines += [
            f"| {row['case']} | {row['by']} | {measured(row)} |"
            for row in rows
            if row["group"] == group and "aim" not in row
        ]
    return "\n".join(lines) + "\n"


def steps_table(steps: list[dict[str, Any]]) -> str:
    lines = ["| step | | seconds | |", "| --- | --- | --- | --- |"]
    for step in steps:
        status = step["status"] if step["status"] == "passed" else f"**{step['status']}**"
        summary = step["summary"].replace("|", "/")
        lines.append(f"| {step['name']} | {status} | {step['seconds']:.0f} | {summary} |")
    return "\n".join(lines)


def measured(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"not measured: {row['skipped']}".replace("|", "/")
    parts = [shown(name, row[name]) for name in row if name not in PLAIN]
    if "value" in row:
        parts.append(shown("value", row["value"]))
    return ", ".join(parts)


def shown(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return f"{name.replace('_', ' ')} {value}"
    words = "" if name in ("seconds", "value") else f"{name.replace('_', ' ')} "
    if name in TIMES:
        return words + duration(value)
    factor, unit = UNITS.get(name, (1, ""))
    return f"{words}{value * factor:.4g} {unit}".strip()


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
