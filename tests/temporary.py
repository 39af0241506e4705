"""Where a pytest that runs beside another one keeps its temporary files."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_folder() -> Iterator[dict[str, str]]:
    """The environment of a pytest whose numbered folders are no other's.

    Two that share them clean up at the same time, and the one that comes late leaves a scan of the
    folder open: a warning, which is an error here.
    """
    with tempfile.TemporaryDirectory(prefix="kvrt-pytest-") as folder:
        yield {"PYTEST_DEBUG_TEMPROOT": folder}
