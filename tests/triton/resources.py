"""Keeps the tables of docs/kernels.md: what every kernel takes on every architecture.

python -m tests.triton.resources docs/kernels.md       compiles what has changed; all takes minutes
"""

import hashlib
import inspect
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from kvrt_kernels.triton.configs import CONFIGS, NVIDIA_PRODUCTS, Tile

from tests.triton.cases import Case
from tests.triton.compiled import TARGETS, Resources, shared_limit
from tests.triton.launches import PARTS, Part, compile_case

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels/kvrt_kernels/triton"
BEGIN, END = "<!-- begin: tests/triton/resources.py, {}, sources {} -->", "<!-- end -->"
Compiled = dict[tuple[str, Case], list[Resources]]

MULTIPLIED = ("product", "floats", "codes")
"""Kernels of which few tokens and many have tiles of their own."""

SPILLED = {
    ("sm_100", Case("prefill", value_dim=64, shared=True)): 24,
    ("sm_100", Case("experts, few tokens", weights="q6_k")): 8,
}
"""Bytes that may be: docs/kernels.md says why."""


def compile_all(archs: Iterable[str], cases: Iterable[Case], cache: Path | None = None) -> Compiled:
    """Compile every case for every architecture that has it, in two processes.

    Args:
        archs: of `TARGETS`.
        cases: of `tests.triton.cases`.
        cache: where Triton keeps what it compiled; None for its usual place.
    """
    todo = [(arch, case) for case in cases for arch in archs if case.runs_on(arch)]
    with ProcessPoolExecutor(2, get_context("spawn"), _cache_in, (cache,)) as pool:
        return dict(zip(todo, pool.map(compile_case, *zip(*todo, strict=True)), strict=True))


def _cache_in(folder: Path | None) -> None:
    if folder is not None:
        os.environ["TRITON_CACHE_DIR"] = str(folder)


def problems(compiled: Compiled) -> list[str]:
    """Kernels that do not fit, spill more than they may, or read what nothing has written."""
    return [
        f"{kernel.name} for {case} on {arch}: {kernel}"
        for (arch, case), kernels in compiled.items()
        for kernel in kernels
        if kernel.spilled > SPILLED.get((arch, case), 0)
        or kernel.shared > shared_limit(arch)
        or kernel.unset
    ]


def begin(name: str) -> str:
    """What stands before the table of a part, or of the tiles."""
    return BEGIN.format(name, sources(PARTS[name]) if name in PARTS else digest(("configs",)))


def sources(part: Part) -> str:
    """A digest of all that decides about a part's table."""
    return digest(part.modules, repr(part.cases), inspect.getsource(part.launch))


def digest(modules: Iterable[str], *more: str) -> str:
    found = hashlib.sha256("".join(more).encode())
    for name in modules:
        found.update((KERNELS / f"{name}.py").read_bytes())
    return found.hexdigest()[:16]


def outdated(text: str) -> list[str]:
    """The parts whose tables are of other sources."""
    return [name for name in PARTS if begin(name) not in text]


def page(text: str, compiled: Compiled) -> str:
    """The page with the table of tiles made anew, and of each part that was compiled."""
    text = with_table(text, "tiles", tile_table())
    for name, part in PARTS.items():
        kernels = {key: found for key, found in compiled.items() if key[1] in part.cases}
        if kernels:
            text = with_table(text, name, resource_table(kernels))
    return text


def with_table(text: str, name: str, table: str) -> str:
    marked = f"{begin(name)}\n\n{table}\n{END}"
    before, after = (re.escape(each) for each in BEGIN.format(name, "*").split("*"))
    found, count = re.subn(
        f"{before}[0-9a-f]*{after}.*?{re.escape(END)}", lambda _: marked, text, flags=re.DOTALL
    )
    assert count == 1, f"the page has no place for the table of {name}"
    return found


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"


def tile_table() -> str:
    """Every tile of every architecture."""
    head = row("kernel", "bits", "head size", *CONFIGS) + row(*["---"] * (3 + len(CONFIGS)))
    lines = []
    for kernel in ("decode", "prefill"):
        tables = [getattr(config, kernel) for config in CONFIGS.values()]
        for bits, size in sorted({key for tiles in tables for key in tiles}):
            lines.append(row(kernel, bits, size, *(described(t.get((bits, size))) for t in tables)))
    for bits, many in NVIDIA_PRODUCTS:
        tiles = [config.products[bits, many] for config in CONFIGS.values()]
        lines.append(row("product", bits, "many tokens" if many else "few", *map(described, tiles)))
    return head + "".join(lines)


def described(tile: Tile | None) -> str:
    if tile is None:
        return "as others"
    more = ", peeled" * tile.peeled + f", chunk {tile.chunk}" * bool(tile.chunk)
    return f"{tile.block_m}x{tile.block_n}, {tile.warps}w, {tile.stages}s{more}"


def resource_table(compiled: Compiled) -> str:
    """The most that any variant of a kernel takes."""
    worst: dict[str, dict[str, list[Resources]]] = defaultdict(lambda: defaultdict(list))
    for (arch, case), kernels in compiled.items():
        for kernel in kernels:
            name = kernel.name.removesuffix("_kernel")
            without = case.weights or case.what in ("dense", "convolve") or "experts" in case.what
            shape = "" if without else f" {case.head_dim}"
            shape += f", {case.what.removeprefix('experts, ')}" * (name in MULTIPLIED)
            shape += ", decays of numbers" * (name == "delta" and case.special)
            shape += ", branches" * case.branches
            worst[f"{name}, {case.numbers}{shape}"][arch].append(kernel)
    lines = [row("kernel", *TARGETS) + row(*["---"] * (1 + len(TARGETS)))]
    for name in sorted(worst):
        lines.append(row(name, *(cell(worst[name][arch]) for arch in TARGETS)))
    return "".join(lines)


def cell(kernels: list[Resources]) -> str:
    if not kernels:
        return "-"
    registers, shared = max(k.registers for k in kernels), max(k.shared for k in kernels)
    spilled, occupancy = max(k.spilled for k in kernels), min(k.occupancy for k in kernels)
    return f"{registers} / {-(-shared // 1024)} / {occupancy}" + f" spills {spilled}" * bool(
        spilled
    )


def main(path: Path) -> str:
    """Write the tables of what has changed; what is wrong with it, empty if nothing is."""
    text = path.read_text()
    changed = [case for name in outdated(text) for case in PARTS[name].cases]
    compiled = compile_all(TARGETS, changed) if changed else {}
    path.write_text(page(text, compiled))
    return "\n".join(problems(compiled))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or None)
