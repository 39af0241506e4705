"""What holds for all tests."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Before any test imports torch, whose OpenMP then waits awake for 0.1 ms instead of 20: what tests
# compute in torch to compare with shares the machine with other tests and their subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "active")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# A shell's background job ignores Ctrl-C, and so would processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test says what it sets; what its user has set for runs of their own is not meant.
for name in [name for name in os.environ if name.startswith("KVRT_")] + ["NO_COLOR", "COLUMNS"]:
    os.environ.pop(name, None)

# One commit, one result, however busy the machine is. `--hypothesis-profile=explore` draws anew.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("explore", BUSY)
settings.register_profile("same", BUSY, derandomize=True, database=None)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test fills, or reads, the caches of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


def pytest_collection_finish() -> None:
    """Thirteen thousand tests are a million objects, which the collector would walk through again
    and again, half a second each time: in whichever test is being timed."""
    gc.collect()
    gc.freeze()
