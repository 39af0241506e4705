"""Device memory follows use, as the driver itself counts it."""

import json
import time
from pathlib import Path

import pytest

from kvrt.errors import CapacityError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.host import physical_bytes
from tests.gpu.conftest import MakeRuntime
from tests.runtime.conftest import CONFIG

pytestmark = pytest.mark.extra

BURST = [[(7 * n + i) % 199 for i in range(600)] for n in range(32)]
PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)
NOISE = 48 << 20
"""Bytes that libraries and other programs may take or free meanwhile."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose page of 16 tokens takes 256 KiB in float32."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def taken(runtime: Runtime) -> int:
    """Bytes in use: of the device by anyone, as its driver says; on a CPU, of this process."""
    if runtime.device_info.backend == "cpu":
        return physical_bytes()
    info = runtime.device.memory.info()
    return info.total - info.free


def held(runtime: Runtime) -> int:
    """Bytes of chunks that the cache has, mapped or not."""
    cache = runtime.stats().cache
    return cache.mapped_bytes + cache.pooled_bytes


def settled(runtime: Runtime) -> int:
    """Bytes in use once the engine has given back what it does not need."""
    deadline = time.monotonic() + 10
    while runtime.busy or held(runtime) > runtime.config.keep_warm:
        assert time.monotonic() < deadline, "memory is not given back"
        time.sleep(0.01)
    return taken(runtime)


def test_a_burst_s_memory_goes_back_to_the_driver(
    backend: str, folder: Path, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime(
        folder, backend=backend, load_format="dummy", memory_limit="1GiB", max_batch_tokens=2048,
        prefix_cache_ttl=0,
    )  # fmt: skip
    runtime.generate(BURST[:2], PARAMS)  # what is loaded at the first use stays
    runtime.generate(BURST, PARAMS)
    before = settled(runtime)
    for _ in range(3):
        results = runtime.generate(BURST, PARAMS)
        assert all(result.error is None for result in results)
        peak = runtime.stats().cache.peak_mapped_bytes
        assert peak > 200 << 20, "the burst is to take more than noise"
        assert abs(settled(runtime) - before) < NOISE


def test_closing_gives_back_all_that_a_runtime_took(
    backend: str, folder: Path, make_runtime: MakeRuntime
) -> None:
    options = {"backend": backend, "load_format": "dummy", "keep_warm": 256 << 20}
    watching = make_runtime(folder, **options)
    watching.generate(BURST[:1], PARAMS)
    before = taken(watching)
    for _ in range(3):
        runtime = make_runtime(folder, **options, memory_limit="1GiB")
        runtime.generate(BURST, PARAMS)
        assert taken(watching) - before > 200 << 20
        runtime.close()
    assert taken(watching) - before < NOISE


def test_what_does_not_fit_is_told_in_bytes_and_the_device_goes_on(
    backend: str, folder: Path, make_runtime: MakeRuntime
) -> None:
    with pytest.raises(CapacityError, match="1MiB is too small: the weights take") as raised:
        make_runtime(folder, backend=backend, load_format="dummy", memory_limit="1MiB")
    assert raised.value.fix
    runtime = make_runtime(folder, backend=backend, load_format="dummy")
    (result,) = runtime.generate(BURST[:1], PARAMS)
    assert result.error is None
