"""The examples of docs/memory.md run, and what they claim is so."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from kvrt_cli.main import cli

from kvrt.config import RuntimeConfig
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.runtime import Runtime

DOC = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)


def test_there_is_an_example_for_each_chapter() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_on_the_page_does_what_it_says(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"docs/memory.md, example {number + 1}", "exec"), {})


def test_names_on_the_page_exist() -> None:
    table = re.findall(r"^\| [^|]+ \| (`\w+`[^|]*) \|([^|]*)\|", DOC, re.MULTILINE)
    known = {field.name for field in fields(RuntimeConfig)} | set(dir(Runtime))
    options = {opt for parameter in cli.commands["run"].params for opt in parameter.opts}
    for names, flags in table:
        if "--" in flags or not flags.strip():
            assert set(re.findall(r"`(\w+)`", names)) <= known
            assert set(re.findall(r"`(--[\w-]+)`", flags)) <= options
    policies = re.findall(r"^\| `(lru|lfu|cost)` \|", DOC, re.MULTILINE)
    assert policies == list(EVICTIONS)
