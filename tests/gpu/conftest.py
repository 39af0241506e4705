"""The backend under test, and runtimes of tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvrt.runtime import Runtime
from kvrt.spi import Device
from kvrt.testing.plugin import SUBJECT
from tests.model.checkpoints import make_model, save_model, save_tokenizer

MakeRuntime = Callable[..., Runtime]


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> str:
    """The name of the backend that was asked for."""
    subject = pytestconfig.stash.get(SUBJECT, None)
    if subject is None:
        raise pytest.UsageError("tests/gpu needs --kvrt-backend NAME, the backend to test")
    return subject.backend.name


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config, backend: str) -> Device:
    """The device under test, with its arguments checked."""
    return pytestconfig.stash[SUBJECT].device


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model with random weights, written once."""
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            path = tmp_path_factory.mktemp(family)
            written[family] = save_tokenizer(save_model(make_model(family), path))
        return written[family]

    return folder


@pytest.fixture
def make_runtime() -> Iterator[MakeRuntime]:
    """Runtimes, closed at the end of the test."""
    opened: list[Runtime] = []

    def make(folder: Path, **options: object) -> Runtime:
        runtime = Runtime(folder, **{"memory_limit": "512MiB", **options})  # type: ignore[arg-type]
        opened.append(runtime)
        return runtime

    yield make
    for runtime in opened:
        runtime.close()
