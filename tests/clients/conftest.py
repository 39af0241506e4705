"""Real servers, and what `ci/clients` has installed to ask them with."""

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.peers.shapes import SHAPES, make_checkpoint
from tests.clients.speaker import FREE, SCRIPTS, TEMPLATE
from tests.embedding.encoders import make_encoder
from tests.server.conftest import Server, started
from tests.server.scripted_model import build

ALONE = {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
"""Nothing is fetched, and nobody else's server is asked."""


@dataclass(frozen=True)
class Clients:
    """What was installed.

    Args:
        folder: of ``ci/clients``: ``venv``, ``node_modules``, and sources of suites.
    """

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def source(self, name: str) -> Path:
        """The folder of a package's source."""
        (found,) = self.folder.glob(f"sources/{name}-*/")
        return found

    def run(
        self,
        command: Sequence[str | Path],
        folder: Path,
        env: Mapping[str, str] = {},
        seconds: float = 900,
    ) -> "subprocess.CompletedProcess[str]":
        """A command to its end, whatever becomes of it."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        return subprocess.run(
            [str(word) for word in command], cwd=folder, env={**plain, **ALONE, **env},
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip

    def outcomes(
        self, folder: Path, tests: Sequence[str | Path], env: Mapping[str, str], *options: str
    ) -> dict[str, str]:
        """Of each test of a suite, with its own pytest: what it failed with, or nothing."""
        report = folder / "outcomes.xml"
        report.unlink(missing_ok=True)
        usual = ("-q", "-o", "addopts=", "-o", "asyncio_mode=auto", "--tb=line", "-p",
                 "no:cacheprovider", "-p", "no:dash")  # fmt: skip
        command = [self.bin / "pytest", *usual, f"--junitxml={report}", *options, *tests]
        done = self.run(command, folder, env)
        assert report.exists(), done.stdout + done.stderr
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            wrong = [child for child in case if child.tag in ("failure", "error")]
            if not any(child.tag == "skipped" for child in case):
                name = f"{case.get('classname')}.{case.get('name')}"
                found[name] = (wrong[0].get("message") or "failed") if wrong else ""
        return found


def check_outcomes(outcomes: Mapping[str, str], unmet: Mapping[str, str]) -> None:
    """What fails is what is said to be unmet, no less and no more.

    Args:
        unmet: patterns of tests' names, each with why it is not met.
    """
    for name, wrong in outcomes.items():
        why = next((why for pattern, why in unmet.items() if re.search(pattern, name)), "")
        assert bool(wrong) == bool(why), f"{name}: {wrong or f'is met now, in spite of: {why}'}"


@pytest.fixture(scope="session")
def clients() -> Clients:
    folder = os.environ.get("CLIENTS", "")
    if not folder:
        pytest.skip("CLIENTS names no folder with them: see ci/clients")
    return Clients(Path(folder))


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "speaker"
    folder.mkdir()
    return build(folder, SCRIPTS, TEMPLATE)


OPTIONS = ("--memory-limit", "512MiB", "--alias", "*")


@pytest.fixture(scope="session")
def speaking(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the speaker, of vectors, and of batches."""
    encoder = tmp_path_factory.mktemp("encoder") / "text-embedding-3-small"  # as OpenAI's tests ask
    make_encoder("bert", encoder)
    batches = tmp_path_factory.mktemp("batches")
    more = (*OPTIONS, "--embed-model", str(encoder), "--batches", str(batches))
    with started(tmp_path_factory.mktemp("speaking"), *more, model=str(speaker)) as server:
        yield server


@pytest.fixture(scope="session")
def free(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same for clients that do not say that a call has to come."""
    template = tmp_path_factory.mktemp("template") / "free.jinja"
    template.write_text(FREE)
    more = (*OPTIONS, "--chat-template", str(template))
    with started(tmp_path_factory.mktemp("free"), *more, model=str(speaker)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the bundled model, in numbers of 32 bits."""
    with started(tmp_path_factory.mktemp("tiny"), "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server and its model, of the shape of SmolLM2-135M: with one thread a step takes
    milliseconds, beside which what a client takes on another core is little."""
    model = tmp_path_factory.mktemp("models") / "smollm2"
    make_checkpoint(SHAPES["smollm2-135m"], model)
    options = ("--threads", "1", "--chat-template", "plain")
    with started(tmp_path_factory.mktemp("busy"), *options, model=str(model)) as server:
        yield server, model
