"""docs/memory.md names what there is. Its examples are run in tests/docs."""

import re
from dataclasses import fields
from pathlib import Path

from kvrt_cli.main import cli

from kvrt.config import RuntimeConfig
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.runtime import Runtime

DOC = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()


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
