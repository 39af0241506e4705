"""The official JavaScript clients."""

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import Clients
from tests.clients.speaker import PLAIN, SUNNY
from tests.server.conftest import Server

SCRIPT = Path(__file__).with_name("javascript.mjs")
pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_openai_anthropic_ollama_and_the_ai_sdk(clients: Clients, speaking: Server) -> None:
    shutil.copy(SCRIPT, clients.folder)  # it finds the node_modules beside itself
    env = {"SERVER": speaking.url, "PLAIN": PLAIN, "SUNNY": SUNNY}
    command = ["node", "--test-reporter=spec", SCRIPT.name]
    done = clients.run(command, clients.folder, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests 24" in done.stdout, done.stdout
    assert "Traceback" not in speaking.said()
