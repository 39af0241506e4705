"""The bundled model, which has a tokenizer, on the CPU."""

from collections.abc import Iterator

import pytest

from kvrt import Runtime


@pytest.fixture(scope="session")
def tiny() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", debug=True, memory_limit="512MiB") as runtime:
        yield runtime
