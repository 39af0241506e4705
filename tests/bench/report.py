"""Turn pytest-benchmark's JSON into a table with machine and date.

    python -m tests.bench.report RESULTS.json [RESULTS.json ...] FOLDER

writes ``FOLDER/<date>-<cpu>.md``; one section a group, one row a benchmark. Where several results
have the same benchmark, the last one counts: so a part that was disturbed can be run again.
"""

import json
import platform
import sys
from collections import defaultdict
from pathlib import Path

import psutil
import torch


def main(results: list[Path], folder: Path) -> None:
    runs = [json.loads(path.read_text()) for path in results]
    data = runs[-1]
    benchmarks = {bench["fullname"]: bench for run in runs for bench in run["benchmarks"]}
    cpu = data["machine_info"]["cpu"].get("brand_raw", platform.machine())
    date = data["datetime"][:10]
    lines = [
        f"# Benchmarks, {date}",
        "",
        f"{cpu}, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; Python {platform.python_version()}, "
        f"torch {torch.__version__}; commit {data['commit_info'].get('id', 'unknown')[:12]}.",
        "",
        "Made by `make bench`. Times are medians; fractions and ratios were measured in the same "
        "run as what they compare with.",
    ]
    groups: dict[str, list[dict]] = defaultdict(list)
    for bench in benchmarks.values():
        groups[bench["group"] or "other"].append(bench)
    for group, benches in sorted(groups.items()):
        lines += ["", f"## {group}", "", "| benchmark | median | measured |", "| --- | --- | --- |"]
        for bench in sorted(benches, key=lambda bench: bench["name"]):
            extra = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in bench["extra_info"].items()
            )
            lines.append(f"| {bench['name']} | {_time(bench['stats']['median'])} | {extra} |")
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(cpu.replace("(R)", "").lower().split())
    path = folder / f"{date}-{name}.md"
    path.write_text("\n".join(lines) + "\n")
    print(path)


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:-1]], Path(sys.argv[-1]))
