"""`clients/typescript`: compiled strictly, and its tests in Node against a real server."""

import json
import os
import shutil
from pathlib import Path

import pytest

from kvrt.server.access.keys import add_key
from tests.clients.conftest import Clients
from tests.docs.pages import ROOT, blocks_of
from tests.server.conftest import started

SOURCE = ROOT / "clients/typescript"
pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


READERS = "declare const file: File;\ndeclare function show(text: string): void;\n"
"""What readers of the page have."""


def write_pages(folder: Path) -> None:
    """The examples of docs/clients.md, and how they are compiled."""
    folder.mkdir()
    options = {"rootDir": "..", "noEmit": True, "jsx": "react-jsx", "noUnusedLocals": False}
    config = {"extends": "../tsconfig.json", "compilerOptions": options, "include": ["."]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    blocks = blocks_of(ROOT / "docs/clients.md")
    for kind, language in (("ts", "typescript"), ("tsx", "tsx")):
        (text,) = (block.text for block in blocks if block.language == language)
        (folder / f"example.{kind}").write_text(READERS + text)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_typescript_client_does_what_its_methods_say(clients: Clients, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    shutil.copytree(SOURCE, folder)
    os.symlink(clients.folder / "node_modules", folder / "node_modules")
    done = clients.run(["node_modules/.bin/tsc"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    write_pages(folder / "pages")
    done = clients.run(["node_modules/.bin/tsc", "--project", "pages"], folder)
    assert done.returncode == 0, f"docs/clients.md: {done.stdout}{done.stderr}"
    key = add_key(tmp_path / "keys", "alice", "admin")
    with started(
        tmp_path, "--keys", str(tmp_path / "keys"), "--batches", str(tmp_path / "state"),
        "--max-running", "8",
    ) as server:  # fmt: skip
        tests = sorted(f"tests/{path.name}" for path in (folder / "tests").iterdir())
        command = ["node", "--test", "--test-concurrency=1", "--test-reporter=spec", *tests]
        done = clients.run(command, folder, {"SERVER": server.url, "KEY": key})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tests 9" in done.stdout, done.stdout
        assert "Traceback" not in server.said()
