"""A snapshot beside the prefill that it saves.

pytest tests/bench/test_bench_snapshot.py --benchmark-enable --benchmark-only
"""

import json
import random
import statistics
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .test_bench_model import DTYPES, SMOLLM2_135M

pytestmark = pytest.mark.extra  # minutes, so only `make bench` runs them

TOKENS = 10_000
FIRST = SamplingParams(max_tokens=1, ignore_eos=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(group=f"snapshot: the first token after {TOKENS:,} of a prompt")
def test_restoring(benchmark: BenchmarkFixture, dtype: str, tmp_path: Path) -> None:
    config = SMOLLM2_135M | {"max_position_embeddings": 16384}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {"load_format": "dummy", "dtype": dtype, "backend": "cpu"}
    prompt = random.Random(0).choices(range(49152), k=TOKENS)

    def first_token(runtime: Runtime) -> tuple[float, tuple[int, ...]]:
        start = time.perf_counter()
        result = runtime.generate([prompt], FIRST)[0]
        assert result.error is None
        return time.perf_counter() - start, result.token_ids

    with Runtime(tmp_path, **options) as runtime:  # type: ignore[arg-type]
        prefill, right = first_token(runtime)
        start = time.perf_counter()
        runtime.save_cache(tmp_path / "saved")
        saving = time.perf_counter() - start
    restores: list[float] = []

    def run() -> None:
        with Runtime(tmp_path, **options) as runtime:  # type: ignore[arg-type]
            start = time.perf_counter()
            runtime.load_cache(tmp_path / "saved")
            _, answer = first_token(runtime)
            restores.append(time.perf_counter() - start)
            assert answer == right

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info.update(
        prefill_s=round(prefill, 2),
        save_s=round(saving, 2),
        restore_s=round(statistics.median(restores), 3),
        restore_over_prefill=round(statistics.median(restores) / prefill, 3),
    )
