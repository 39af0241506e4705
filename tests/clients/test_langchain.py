"""LangChain's standard tests of chat models, with every property that applies."""

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import Clients, check_outcomes
from tests.server.conftest import Server

SUITE = Path(__file__).with_name("langchain_suite.py")
pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


def test_all_its_clients_pass_its_standard_tests(
    clients: Clients, speaking: Server, free: Server, tmp_path: Path
) -> None:
    env = {"SERVER": speaking.url, "FREE": free.url}
    one_loop = ("-o", "asyncio_default_test_loop_scope=session",
                "-o", "asyncio_default_fixture_loop_scope=session")  # fmt: skip
    # Its clients keep connections from one test to the next, which end with a loop.
    suite = shutil.copy(SUITE, tmp_path)  # away from our own settings of pytest
    outcomes = clients.outcomes(tmp_path, [suite], env, *one_loop)
    assert len(outcomes) > 200
    check_outcomes(outcomes, {})


def test_our_example_of_a_chain_runs(clients: Clients, tiny: Server, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "langchain_chain.py"
    options = ("--url", f"{tiny.url}/v1", "--model", "tiny")
    done = clients.run([clients.bin / "python", example, "the sea", *options], tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
