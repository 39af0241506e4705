"""The layers of the house, as ARCHITECTURE.md has them: imports go down only, without circles, and
only a backend knows a vendor.

Every import counts: at the top of a file, inside a function, and for type checkers only.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kvrt import spi

ROOT = Path(__file__).parents[1]
SOURCES = ("kvrt", "cli", "kernels", "backends/cpu", "backends/cuda", "backends/rocm")
TOP_FLOOR = 12
"""Files, at most, that a newcomer finds in ``kvrt/`` itself."""

DEVICE = {"torch", "kvrt.kv.cache", "kvrt.wrappers", "kvrt.executor"}
VALUES = ["sched", "drafting", "kv/index", "kv/pages", "kv/seq.py", "kv/limit.py", "kv/spare.py"]
"""What plans: on values alone, so that it is tested and replayed without a device."""

TOUCH = {
    "kvrt.spi",
    "kvrt.registry",
    "kvrt.wrappers",
    "kvrt.testing",
    "kvrt.model",
    "kvrt.executor",
    "kvrt.integrations",
    "kvrt.ranks",
}
"""What calls devices: the executor, the model that it runs, what makes or tries a device, and what
hands one to another engine."""

PROTOCOLS = {name for name in spi.__all__ if getattr(getattr(spi, name), "_is_protocol", False)} - {
    "Ticket"
}
"""What a backend implements."""

OPEN = {
    "kvrt.embedding.decoding",
    "kvrt.embedding.judges",
    "kvrt.embedding.opening",
    "kvrt.speech.pages",
    "kvrt.arena",
    "kvrt.engine.assembly",
    "kvrt.engine.sizing",
    "kvrt.engine.weighing",
    "kvrt.engine.worker",
    "kvrt.runtime",
}
"""What opens a device, asks how much memory it has before there is an executor, and hands it on."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "click": ("cli",),
    "rich": ("cli",),
    "textual": ("cli",),
    "yaml": ("cli",),
    "triton": ("kernels",),
    "cuda": ("backends/cuda",),
    "hip": ("backends/rocm",),
    "pytest": ("kvrt/testing",),
    "transformers": ("kvrt/integrations", "kvrt/model/borrowed"),
    "starlette": ("kvrt/server", "kvrt/routing", "kvrt/integrations"),
    "uvicorn": ("kvrt/server",),
    "msgspec": (
        "kvrt/server",
        "kvrt/integrations",
        "kvrt/batches",
        "kvrt/client",
        "kvrt/routing",
        "kvrt/data",
        "kvrt/bench",
    ),
    "httpx": ("kvrt/client", "kvrt/routing", "kvrt/bench"),
    "sqlite3": ("kvrt/batches", "kvrt/server/tenants", "kvrt/data"),
    "py3langid": ("kvrt/data",),
    "jwt": ("kvrt/server",),
    "opentelemetry": ("kvrt/server", "kvrt/bench"),
    "mlflow": ("kvrt/bench",),
    "wandb": ("kvrt/bench",),
    "prometheus_client": ("kvrt/server", "kvrt/integrations", "kvrt/routing"),
    "llguidance": ("kvrt/structured",),
    "PIL": ("kvrt/model/vision",),
    "vllm": ("kvrt/integrations",),
    "dynamo": ("kvrt/integrations",),
    "ray": ("kvrt/integrations",),
    "sglang": ("kvrt/integrations",),
    "lmcache": ("kvrt/integrations",),
    "tensorrt_llm": ("kvrt/integrations",),
    "zmq": ("kvrt/integrations", "kvrt/routing"),
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


@cache
def imported(path: Path) -> set[str]:
    source_root = next(p for p in path.parents if not (p / "__init__.py").exists())
    package = ".".join(path.parent.relative_to(source_root).parts)
    return set(imports(path.read_text(), package))


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def module_of(path: Path) -> str:
    root = next(p for p in path.parents if not (p / "__init__.py").exists())
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def graph() -> dict[str, set[str]]:
    """Of each module of the project, the modules of the project that it imports."""
    found = {module_of(path): path for folder in SOURCES for path in files(folder)}

    def known(name: str) -> Iterator[str]:
        while name and name not in found:
            name = name.rpartition(".")[0]
        if name:
            yield name

    return {
        module: {there for name in imported(path) for there in known(name)} - {module}
        for module, path in found.items()
    }


# --- what ARCHITECTURE.md says ---------------------------------------------------------------


def names_in(text: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", text)


@cache
def table() -> list[tuple[list[str], list[str]]]:
    """Of each row of the table, from the top: the parts that it is about, and what they import."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (`kvrt.*?) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert rows, "ARCHITECTURE.md has lost its table"
    return [(names_in(parts), names_in(below)) for parts, below in rows]


def row_of(module: str) -> int:
    """The row that a module belongs to: the one that names most of its name."""
    found = [
        (len(name), number)
        for number, (parts, _) in enumerate(table())
        for name in parts
        if module == name or (name != "kvrt" and within(module, {name}))
    ]
    assert found, f"{module} has no place in ARCHITECTURE.md"
    return max(found)[1]


@cache
def drawn() -> dict[int, set[int]]:
    """The rows whose parts have boxes in the drawing, and those that arrows lead to from there."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    (drawing,) = re.findall(r"^```mermaid\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in drawing.splitlines() if "subgraph" not in line]
    boxes = re.findall(r"(\w+)\[([\w.]+).*?\]", "\n".join(lines))
    row = {short: row_of(name) for short, name in boxes}
    below: dict[int, set[int]] = {number: set() for number in row.values()}
    for line in lines:
        if "-->" in line:
            above, others = (re.findall(r"(\w+)(?:\[.*?\])?", end) for end in line.split("-->"))
            for short in above:
                below[row[short]] |= {row[other] for other in others}
    return below


BASICS = "kvrt.errors"
"""The first name of the row whose imports nobody lists."""


def row_imports() -> dict[int, dict[int, str]]:
    """The rows that each row's modules import, with an import that shows it."""
    found: dict[int, dict[int, str]] = {number: {} for number in range(len(table()))}
    for module, below in graph().items():
        for there in below:
            found[row_of(module)][row_of(there)] = f"{module} imports {there}"
    for number, below in found.items():
        below.pop(number, None)
        below.pop(row_of(BASICS), None)
    return found


def test_modules_import_each_other_in_no_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_part_imports_what_the_table_says_and_nothing_else() -> None:
    wrong = []
    for number, below in row_imports().items():
        parts, allowed = table()[number]
        covered = {name: [n for n in below if within(table()[n][0][0], {name})] for name in allowed}
        wrong += [f"{parts[0]} imports nothing of {name}" for name in allowed if not covered[name]]
        beyond = below.keys() - {n for rows in covered.values() for n in rows}
        wrong += [f"{below[there]}, which the table does not say" for there in beyond]
    assert not wrong


def test_the_table_goes_down() -> None:
    wrong = [
        below[there] for here, below in row_imports().items() for there in below if there < here
    ]
    assert not wrong


def test_the_drawing_shows_the_same_imports() -> None:
    """Each arrow is one; and along arrows, everything that a part imports can be reached."""
    arrows, real = drawn(), row_imports()
    assert arrows.keys() == real.keys() - {row_of(BASICS)}
    names = [parts[0] for parts, _ in table()]
    reached: dict[int, set[int]] = {}
    for here in TopologicalSorter(arrows).static_order():
        reached[here] = arrows[here].union(*(reached[there] for there in arrows[here]))
    for here, below in real.items():
        for there in arrows.get(here, set()) - below.keys():
            pytest.fail(f"{names[here]} does not import {names[there]}, as an arrow says")
        for there in below.keys() - reached.get(here, set()):
            pytest.fail(f"{below[there]}, and no arrow leads there")


def test_the_top_floor_of_kvrt_is_small() -> None:
    assert len(list((ROOT / "kvrt").glob("*.py"))) <= TOP_FLOOR


def test_kvrt_finds_backends_and_kernels_by_entry_point_and_never_by_import() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files("kvrt")
        for module in imported(path)
        if module.partition(".")[0].startswith("kvrt_")
    ]
    assert not wrong


@pytest.mark.parametrize("folder", [name for name in SOURCES if name not in ("kvrt", "cli")])
def test_backends_and_kernels_import_the_contract_and_never_each_other(folder: str) -> None:
    own = {path.name for path in (ROOT / folder).iterdir() if path.name.startswith("kvrt_")}
    allowed = {"kvrt.spi", "kvrt.errors", "kvrt_kernels", *own}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(folder)
        for module in imported(path)
        if module.startswith("kvrt") and not within(module, allowed)
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


def touches(source: str) -> Iterator[str]:
    """What a file reads of devices, however it came by one: their parts, and their methods."""
    members = [name for name in vars(spi.Device) if not name.startswith("_")]
    parts = {name for name in members if isinstance(vars(spi.Device)[name], property)}
    calls = {name for name in members if name not in parts} - {"close"}
    memory = {name for name in vars(spi.VirtualMemory) if not name.startswith("_")} - {"info"}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) if name in parts - {"info", "memory"}:
                yield f"{name} in line {node.lineno}"
            case ast.Call(func=ast.Attribute(attr=name)) if name in calls:
                yield f"{name}() in line {node.lineno}"
            case ast.Attribute(value=ast.Attribute(attr="memory"), attr=name) if name in memory:
                yield f"memory.{name} in line {node.lineno}"


def test_only_the_executor_touches_a_device() -> None:
    """Everything above it works on values, and calls it. (A ticket is what it gives back.)"""
    wrong = []
    for path in files("kvrt"):
        if within(module := module_of(path), TOUCH):
            continue
        wrong += [f"{module}: {found}" for found in touches(path.read_text())]
        if module not in OPEN:
            kinds = {f"kvrt.spi.{name}" for name in PROTOCOLS} | {"kvrt.registry.open_device"}
            wrong += [f"{module} imports {name}" for name in imported(path) & kinds]
    assert not wrong


def test_the_kv_memory_above_the_executor_knows_no_tensors() -> None:
    paths = [path for path in files("kvrt/kv") if "tiers" not in path.parts]
    wrong = [path.name for path in paths for name in imported(path) if within(name, {"torch"})]
    assert not wrong


def test_each_outside_library_has_its_place() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in SOURCES
        for path in files(folder)
        for module in imported(path)
        for library, places in ONLY_IN.items()
        if within(module, {library})
        and not any(path.is_relative_to(ROOT / place) for place in places)
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
def touching(self):
    self.engine.memory.commit(self.tensor.device, self.running.fence, self.file.close())
    self.memory.info(), self.it.memory.create(), self.it.fence().wait(), self.it.copier
"""
    assert set(imports(source, "kvrt.kv.pages")) == {
        "typing.TYPE_CHECKING",
        "kvrt.kv.cache.KVCache",
        "triton.language",
        "kvrt.kv.pages.sibling",
        "kvrt.spi.Device",
    }
    assert {word for _, word in code_words(source)} & VENDORS == {"cuda", "hip"}
    found = ["copier in line 13", "fence() in line 13", "memory.create in line 13"]
    assert sorted(touches(source)) == found
    assert "Device" in PROTOCOLS
