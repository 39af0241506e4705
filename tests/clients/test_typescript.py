"""`clients/typescript`: compiled strictly, and its tests in Node against a real server."""

import os
import shutil
from pathlib import Path

import pytest

from kvrt.server.access.keys import add_key
from tests.clients.conftest import Clients
from tests.server.conftest import started

SOURCE = Path(__file__).parents[2] / "clients/typescript"
pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_typescript_client_does_what_its_methods_say(clients: Clients, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    shutil.copytree(SOURCE, folder)
    os.symlink(clients.folder / "node_modules", folder / "node_modules")
    done = clients.run(["node_modules/.bin/tsc"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
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
