"""Every example in Python runs, as a reader would run it who begins at the top of its page."""

import ast
import asyncio
import inspect
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import openai
import pytest

import kvrt
from tests.server.conftest import Server

from .pages import ROOT, Block, blocks_of, name_of, pages

NOT_RUN = {
    "docs/stores.md": ("KvCacheConnectorConfig", "needs TensorRT-LLM, and a GPU"),
    "docs/serve.md": ("tools=tools", "needs a model whose template has tools: test_tools.py"),
    "docs/ray.md": ("ray", "needs Ray: ci/ray runs examples/ray_serve.py and ray_data.py"),
}
"""Of a page: what is in the example that is not run, and the reason."""

HAVING = {"docs/adapters.md": {"prompt": "May I park here?"}}
"""What readers of a page have that the page does not say, beside kvrt."""

LONG = frozenset({"docs/parallel.md"})
"""Pages whose examples start processes."""

NAMES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M-Instruct",
    "openai/whisper-tiny": "./whisper-tiny",
    "sentence-transformers/all-MiniLM-L6-v2": "./all-MiniLM-L6-v2",
    "BAAI/bge-reranker-v2-m3": "./bge-reranker-v2-m3",
    '"MODEL"': '"./MODEL"',
    "40GiB": "400MiB",
    "12GiB": "100MiB",
}
"""Names of models that would be fetched, and sizes of machines that are not here."""

EXAMPLES = {
    name_of(page): blocks
    for page in pages()
    if (blocks := [block for block in blocks_of(page) if block.language == "python"])
}


def run(block: Block, names: dict[str, Any], served: str) -> None:
    """An example with what those before it on its page have left; it may await."""
    text = "\n" * block.line + block.text.replace("http://127.0.0.1:8000", served)
    for name, here in NAMES.items():
        text = text.replace(name, here)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(text, ROOT / block.page, "exec", flags=flags, dont_inherit=True)
    made = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(made)


def marked(page: str) -> Any:
    return pytest.param(page, marks=pytest.mark.extra if page in LONG else ())


@pytest.mark.parametrize("page", [*map(marked, EXAMPLES)])
def test_examples_of_a_page_run_one_after_the_other(
    page: str, reader: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(reader)
    left_out, _ = NOT_RUN.get(page, ("", ""))
    examples = [b for b in EXAMPLES[page] if not left_out or left_out not in b.text]
    asks = any("http://127.0.0.1:8000" in block.text for block in examples)
    server: Server | None = request.getfixturevalue("served") if asks else None
    names = {"__name__": "example", "kvrt": kvrt, **HAVING.get(page, {})}
    with ExitStack() as ends:
        for block in examples:
            run(block, names, server.url if server else "")
        for value in names.values():  # what an example opens, and its reader goes on with
            if isinstance(value, kvrt.Runtime | openai.OpenAI):
                ends.enter_context(closing(value))


def test_what_is_not_run_is_there() -> None:
    for page, (text, _) in NOT_RUN.items():
        assert any(text in block.text for block in EXAMPLES[page]), page
    assert HAVING.keys() | LONG <= EXAMPLES.keys()
