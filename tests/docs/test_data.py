"""Blocks that are neither Python nor commands are what they say they are.

What has no language and no command is text: what programs print, formulas, formats of files.
"""

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy.test_model_resource import valid

from .pages import Block, blocks_of, pages

READ: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
ELSEWHERE = {
    "": "text",
    "mermaid": "held against the imports (tests/test_layers.py)",
    "python": "run (test_python.py)",
    "tsx": "compiled (tests/clients/test_typescript.py)",
    "typescript": "likewise",
}
BLOCKS = [
    block
    for page in pages()
    for block in blocks_of(page)
    if not block.is_shell and block.language not in ELSEWHERE
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_data_can_be_read(block: Block) -> None:
    found = READ[block.language](block.text)
    if isinstance(found, dict) and found.get("kind") == "Model":
        assert valid(found), "the operator takes it"
