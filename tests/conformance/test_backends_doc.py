"""docs/backends.md builds a complete backend: it is the file that the tests run."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import kvrt_null

from kvrt import registry, spi
from kvrt.spi import Capability
from kvrt.testing.mutants import MUTANTS
from kvrt.testing.subject import EXTENSIONS

DOC = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_the_example_on_the_page_is_the_backend_that_passes_the_kit() -> None:
    assert kvrt_null.__file__
    assert lines("\n".join(blocks("python"))) == lines(Path(kvrt_null.__file__).read_text())


def test_the_entry_point_on_the_page_is_the_installed_one() -> None:
    (block,) = blocks("toml")
    written = tomllib.loads(block)["project"]["entry-points"][registry.GROUP]
    (entry,) = importlib.metadata.entry_points(group=registry.GROUP, name="null")
    assert written == {entry.name: entry.value}


def test_the_output_on_the_page_is_what_the_kit_prints() -> None:
    device = registry.load("null").open()
    missing = [c.name for c in Capability if c not in device.info.capabilities]
    absent = [kind.__name__ for kind in EXTENSIONS if device.extension(kind) is None]
    device.close()
    assert f"capabilities not declared: {', '.join(missing)}\n" in DOC
    assert f"extensions not offered: {', '.join(absent)}\n" in DOC


def test_names_on_the_page_exist() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE))
    assert listed == {"cpu", "cuda", "rocm", "null"}
    assert listed <= {c.name for c in registry.candidates()}
    assert f"{len(MUTANTS)} devices with one fault each" in DOC
    for name in re.findall(r"`([A-Z]{3,}_[A-Z]+)`", DOC):
        assert name in Capability.__members__
    for name in ("DenseOps", "Measurable", "KVLayout", "DeviceInfo"):
        assert f"`{name}" in DOC
        assert hasattr(spi, name)
