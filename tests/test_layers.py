"""The layers of the house: imports go down only, and only a backend knows a vendor.

    cli/kvrt_cli           -> kvrt
    backends/*/kvrt_*      -> kvrt.spi, kvrt.errors, kvrt_kernels   (never each other)
    kernels/kvrt_kernels   -> kvrt.spi, kvrt.errors
    kvrt                   -> itself, downwards as in LAYERS; backends are found by entry point

Every import counts: at the top of a file, inside a function, and for type checkers only.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: list[set[str]] = [
    {"errors"},
    {"spi", "units", "engine.process", "drafting"},
    {"checks"},
    {"kv.pages", "kv.tiers", "kv.index.cost", "wrappers", "outputs", "sampling"},
    {"kv.cache", "kv.seq", "model", "registry", "engine.sampler", "engine.stops", "stream"},
    {"kv.index", "kv.offload", "openmp"},
    {"sched"},
    {"config", "kv.memory", "engine.forward", "engine.prompts", "engine.request"},
    {"engine.mailbox", "engine.live"},
    {"engine.beaming"},
    {"engine.answers"},
    {"engine.engine", "engine.sizing", "engine.storing"},
    {"engine.prefixes", "engine.stats"},
    {"engine.worker"},
    {"control"},
    {"runtime"},
    {"__init__"},
    {"testing"},
]
"""The parts of kvrt, the lowest first: each imports only from layers below its own."""

DEVICE = {"torch", "kvrt.kv.cache", "kvrt.wrappers", "kvrt.kv.pages.apply", "kvrt.kv.pages.backing"}
VALUES = [
    "sched",
    "drafting",
    "kv/index",
    "kv/seq.py",
    *(
        f"kv/pages/{name}.py"
        for name in ("change", "eviction", "geometry", "ops", "placement", "referrers", "table")
    ),
]
"""What plans: on values alone, so that it is tested and replayed without a device."""

ONLY_IN: dict[str, str] = {
    "click": "cli",
    "rich": "cli",
    "triton": "kernels",
    "cuda": "backends/cuda",
    "hip": "backends/rocm",
    "pytest": "kvrt/testing",
}
PACKAGES = {
    "cli": {"kvrt", "kvrt_cli"},
    "kernels": {"kvrt.spi", "kvrt.errors", "kvrt_kernels"},
    **{
        f"backends/{name}": {"kvrt.spi", "kvrt.errors", "kvrt_kernels", f"kvrt_{name}"}
        for name in ("cpu", "cuda", "rocm")
    },
}
VENDORS = {
    "cuda",
    "rocm",
    "hip",
    "nvidia",
    "amd",
    "cudnn",
    "cublas",
    "nccl",
    "rccl",
    "metal",
    "xpu",
}


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder} has no Python files"
    return found


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a file imports, by its full name; of ``from a import b``, ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((above if node.level else []) + ([node.module] if node.module else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported(path: Path) -> set[str]:
    source_root = next(p for p in path.parents if not (p / "__init__.py").exists())
    package = ".".join(path.parent.relative_to(source_root).parts)
    return set(imports(path.read_text(), package))


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def part(module: str) -> str:
    """The part of kvrt that ``kvrt.part.more`` belongs to."""
    found = [name for name in set().union(*LAYERS) if within(module, {f"kvrt.{name}"})]
    return max(found, key=len, default="__init__")


def rank(name: str) -> int:
    ranks = [n for n, layer in enumerate(LAYERS) if name in layer]
    assert ranks, f"kvrt.{name} has no place in LAYERS yet"
    return ranks[0]


def part_of(path: Path) -> str:
    return part(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_imports_within_kvrt_go_down_only() -> None:
    wrong = []
    for path in files("kvrt"):
        here = part_of(path)
        for module in imported(path):
            if not within(module, {"kvrt"}):
                continue
            there = part(module)
            if there != here and rank(there) >= rank(here):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_kvrt_finds_backends_and_kernels_by_entry_point_and_never_by_import() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files("kvrt")
        for module in imported(path)
        if module.partition(".")[0].startswith("kvrt_")
    ]
    assert not wrong


@pytest.mark.parametrize("folder", PACKAGES)
def test_other_packages_import_of_the_project_only_what_they_may(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(folder)
        for module in imported(path)
        if module.startswith("kvrt") and not within(module, PACKAGES[folder])
    ]
    assert not wrong


@pytest.mark.parametrize("name", VALUES)
def test_planning_knows_neither_tensors_nor_devices(name: str) -> None:
    paths = [ROOT / "kvrt" / name] if name.endswith(".py") else files(f"kvrt/{name}")
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imported(path)
        if within(module, DEVICE)
    ]
    assert not wrong


def test_each_outside_library_has_its_place() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in ("kvrt", *PACKAGES)
        for path in files(folder)
        for module in imported(path)
        for library, place in ONLY_IN.items()
        if within(module, {library}) and not str(path.relative_to(ROOT)).startswith(f"{place}/")
    ]
    assert not wrong


def code_words(source: str) -> Iterator[tuple[int, str]]:
    """The words of all names and strings of a file, with their lines; not those of docstrings."""
    tree = ast.parse(source)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if id(node) in prose:
            continue
        for value in vars(node).values():
            if isinstance(value, str):
                line = getattr(node, "lineno", 0)
                yield from ((line, word.lower()) for word in re.findall(r"[A-Za-z]+", value))


def test_no_code_of_kvrt_names_a_vendor() -> None:
    """In comments and docstrings a vendor may serve as an example; code asks for capabilities."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} says {word}"
        for path in files("kvrt")
        for line, word in code_words(path.read_text())
        if word in VENDORS
    ]
    assert not wrong


def test_the_backends_have_the_same_shape() -> None:
    """What one needs, another has under the same file name; GPUs need one more, and less else."""
    cpu, cuda, rocm = (
        {path.name for path in files(f"backends/{name}")} for name in ("cpu", "cuda", "rocm")
    )
    assert cuda - cpu == rocm - cpu == {"calls.py"}
    assert rocm - cuda == {"memory.py"}


def test_these_tests_see_what_they_look_for() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from kvrt.kv.cache import KVCache
def late():
    "cuda is fine here"  # and cuda here
    import triton.language
    from . import sibling
    from ...spi import Device
    return torch.cuda_is("hip:0")
"""
    assert set(imports(source, "kvrt.kv.pages")) == {
        "typing.TYPE_CHECKING",
        "kvrt.kv.cache.KVCache",
        "triton.language",
        "kvrt.kv.pages.sibling",
        "kvrt.spi.Device",
    }
    assert {word for _, word in code_words(source)} & VENDORS == {"cuda", "hip"}
