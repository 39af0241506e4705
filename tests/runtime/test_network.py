"""Prefill on one machine and decode on another, with a wire between them that is pulled."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.tiers.elsewhere import KEY
from tests.two_machines import ip, two_machines

ROOT = Path(__file__).parents[2]
PROMPT = [(7 * n) % 199 for n in range(200)]
PAGES = (len(PROMPT) - 1) // 16
NODE = Path(__file__).parent / "node.py"
STORE = "10.213.7.1:7707"


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    with two_machines("10.213.7") as names:
        yield names


class Node:
    """A process in a namespace, which is told what to do line by line."""

    def __init__(self, namespace: str, *args: str) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def ask(self, what: str, **options: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, **options}) + "\n")
        self._process.stdin.flush()
        return self.told()

    def told(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "a node has ended"
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        assert self._process.wait(20) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.promise("P43")
def test_prefill_here_decode_there_and_the_wire_pulled(
    nodes: tuple[str, str], tiny_lm: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    here, there = nodes
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        params = SamplingParams(max_tokens=24, ignore_eos=True)
        prompts = [[n, *PROMPT] for n in range(3)]
        right = [list(result.token_ids) for result in cold.generate(prompts, params)]
    running = contextlib.ExitStack()
    with running:
        store = Node(here, str(NODE), "store", STORE, str(key))
        running.callback(store.end)
        assert store.told()["at"] == STORE
        args = (str(NODE), "runtime", STORE, str(key), str(tiny_lm))
        prefill, decode = Node(here, *args), Node(there, *args)
        running.callback(prefill.end)
        running.callback(decode.end)
        for node in (prefill, decode):
            assert node.told()["connected"]
        # Prefill here, decode there: the pages come over the wire.
        prefill.ask("generate", prompt=prompts[0], most=1)
        assert decode.ask("pages", least=PAGES)["pages"] >= PAGES
        first = decode.ask("generate", prompt=prompts[0], most=24)
        assert first["tokens"] == right[0]
        assert first["cached"] == PAGES * 16
        # The wire is pulled while pages are known and not yet fetched.
        prefill.ask("generate", prompt=prompts[1], most=1)
        assert decode.ask("pages", least=2 * PAGES)["pages"] >= 2 * PAGES
        ip("-n", there, "link", "set", there, "down")
        second = decode.ask("generate", prompt=prompts[1], most=24)
        assert second["tokens"] == right[1]
        assert second["cached"] == 0
        assert second["seconds"] < 10
        # It is put in again, and pages come as before.
        ip("-n", there, "link", "set", there, "up")
        prefill.ask("generate", prompt=prompts[2], most=1)
        assert decode.ask("pages", least=3 * PAGES)["pages"] >= 3 * PAGES
        third = decode.ask("generate", prompt=prompts[2], most=24)
        assert third["tokens"] == right[2]
        assert third["cached"] == PAGES * 16
