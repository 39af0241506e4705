"""The programs in examples/ do what they are there to show."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kvrt
from tests.server.conftest import Server, started
from tests.server.scripted_model import build

ROOT = Path(__file__).parents[2]
CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 17, "b": 23}}\n</tool_call>'
SCRIPTS = {"?": CALL, "1": "It is 391.", "!": CALL.replace("multiply", "divide"), ")": "I cannot."}
"""By the last letter of what the model hears: the user, or a tool."""


def loaded(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / name))


def run(name: str, *args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = build(tmp_path_factory.mktemp("models"), SCRIPTS)
    with started(tmp_path_factory.mktemp("server"), model=str(model)) as server:
        yield server


def test_the_agent_calls_a_tool_and_answers_with_what_it_says(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("agent.py", "17 times 23?", "--url", f"{server.url}/v1", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == 'multiply({"a": 17, "b": 23}) = 391\nIt is 391.\n'


def test_the_agent_tells_the_model_what_is_wrong_with_a_call() -> None:
    called = loaded("agent.py")["called"]
    assert called("divide", "{}") == "error: 'divide'"
    assert called("multiply", '{"a": 1}').startswith("error: ")
    assert called("multiply", "{").startswith("error: ")


def test_an_engine_of_ones_own_holds_what_its_requests_need_and_gives_it_back() -> None:
    example = loaded("own_engine.py")
    lengths = [200, 900, 40, 640, 320, 70]
    with kvrt.Arena("64GiB", backend="cpu", budget="256MiB", keep_warm="0B") as arena:
        said = example["serve"](example["Blocks"](arena), lengths)
        stats = arena.stats()
    # Four at once, in blocks of 64 KiB for 16 tokens, of which a chunk has 32.
    assert 0 < stats.peak_mapped_bytes <= 2 * 4 * arena.chunk_bytes
    assert stats.mapped_bytes == 0
    for seed, (length, last) in enumerate(zip(lengths, said, strict=True)):
        random = torch.Generator().manual_seed(seed)
        rows = torch.stack([torch.randn(3, 8, 64, generator=random) for _ in range(length)])
        q, k, v = rows.unbind(1)
        want = torch.nn.functional.scaled_dot_product_attention(
            q[-1:].transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        )
        torch.testing.assert_close(last, want[:, 0])


def test_it_says_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("own_engine.py", monkeypatch=monkeypatch)
    assert "holds    0 MiB" in capsys.readouterr().out
