"""The real llama-server beside `kvrt llama-server`: see `ci/llama-server`."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Server, launch, listening, until
from tests.server.llama.conftest import OPTIONS
from tests.server.llama.contract import ASKED, RANKS, VECTORS, differences, record

pytestmark = [pytest.mark.extra, pytest.mark.timeout(3600)]

FILE = Path(__file__).parents[1] / "data" / "llama_server.json"
REAL = Path(__file__).parent / "real.py"
KINDS = {"answers": ASKED, "vectors": VECTORS, "ranks": RANKS}
WORDS = {
    "answers": ("--metrics", "--props"),
    "vectors": ("--embeddings", "--pooling", "mean"),
    "ranks": ("--reranking",),
}
"""Of the command line of each."""


@pytest.fixture(scope="module")
def model() -> str:
    name = os.environ.get("MODEL", "")
    if not name or not Path(name).exists():
        pytest.skip("MODEL names no GGUF file: see ci/llama-server")
    return name


@contextmanager
def real(kind: str, model: str, log: Path) -> Iterator[Server]:
    """The real server, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [f"{os.environ['LLAMA']}/venv/bin/python", str(REAL), str(port), model, kind]
    if program := os.environ.get("LLAMA_SERVER"):
        command = [program, "-m", model, "--port", str(port), "-np", "2", "-c", "2048",
                   *WORDS[kind]]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    server = Server(process, log, port)

    def ready() -> bool:
        assert process.poll() is None, server.said()
        with contextlib.suppress(OSError):
            return server.ask("GET", "/health")[0] == 200
        return False

    try:
        until(ready, 300)
        yield server
    finally:
        process.kill()
        process.wait(60)


def version(server: Server) -> str:
    told: str = json.loads(server.ask("GET", "/props")[2])["build_info"]
    if os.environ.get("LLAMA_SERVER"):
        return f"llama.cpp {told}"
    return "llama.cpp b11549, as xllamacpp 2026.10.11549 has it"


def test_the_recorded_shapes_are_those_of_the_real_server(model: str, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for kind, every in KINDS.items():
        with real(kind, model, tmp_path / kind) as server:
            found |= {"version": version(server)} if kind == "answers" else {}
            found[kind] = record(server, every)
    if os.environ.get("RECORD"):
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    recorded = json.loads(FILE.read_text())
    wrong = [
        (kind, name, different)
        for kind, every in KINDS.items()
        for name in every
        if (different := differences(name, recorded[kind][name], found[kind][name]))
    ]
    print(f"\n{found['version']}: {sum(map(len, KINDS.values()))} answers; against those recorded"
          f" of {recorded['version']}: {len(wrong)} differ")  # fmt: skip
    assert wrong == [], wrong


def test_the_same_requests_have_answers_of_the_same_shapes(model: str, tmp_path: Path) -> None:
    with real("answers", model, tmp_path / "real") as theirs:
        want = record(theirs, ASKED)
    server = launch(tmp_path / "log", "-m", model, *OPTIONS, command="llama-server")
    with listening(server):
        found = record(server, ASKED)
    wrong = {name: different for name in ASKED
             if (different := differences(name, want[name], found[name]))}  # fmt: skip
    print(f"\n{len(ASKED)} requests to both: {len(ASKED) - len(wrong)} answered alike")
    assert wrong == {}
