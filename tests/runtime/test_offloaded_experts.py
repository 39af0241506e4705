"""A mixture of experts in less memory than its experts take: the same texts, and what can fail."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from kvrt.config import RuntimeConfig
from kvrt.engine.weighing import weigh
from kvrt.errors import ConfigError, WeightsUnreadable
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.server.errors import refusal_of
from kvrt.server.telemetry.metrics import Metrics
from tests.model.checkpoints import make_model, save_model

PROMPTS = [[(7 * at + 11 * which) % 250 for at in range(20 + 9 * which)] for which in range(5)]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
HERE: dict[str, Any] = {"backend": "cpu", "threads": 1, "memory_limit": "64MiB", "debug": True}
EACH = 3 * 64 * 96 * 2
"""Bytes of an expert."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model("olmoe", intermediate_size=96)
    return save_model(model, tmp_path_factory.mktemp("olmoe"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def want(folder: Path) -> list[Sequence[int]]:
    with Runtime(folder, **HERE) as runtime:
        assert runtime.stats().experts is None
        return [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)]


@pytest.fixture
def runtime(folder: Path) -> Iterator[Runtime]:
    """With room for 10 of 24 experts."""
    with Runtime(folder, offload_experts=10 * EACH, **HERE) as runtime:
        yield runtime


@pytest.mark.promise("P15")
def test_texts_are_the_same_and_what_was_there_is_counted(
    runtime: Runtime, want: list[Sequence[int]]
) -> None:
    assert [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)] == want
    assert [runtime.generate([prompt], PARAMS)[0].token_ids for prompt in PROMPTS] == want
    found = runtime.stats().experts
    assert found is not None
    assert found.places == found.held == 10
    assert found.misses >= 24, "all of them were needed"
    assert found.read_bytes == found.misses * EACH
    assert found.read_seconds > 0
    assert found.hit_rate == found.hits / (found.hits + found.misses) > 0
    told = text_string_to_metric_families(Metrics(runtime).text().decode())
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for one in told
        for sample in one.samples
    }
    assert values["kvrt_experts_total", "hit"] == found.hits
    assert values["kvrt_experts_total", "miss"] == found.misses
    assert values["kvrt_expert_read_bytes_total",] == found.read_bytes
    assert values["kvrt_expert_read_seconds_total",] == pytest.approx(found.read_seconds)


def test_a_model_is_weighed_with_what_its_experts_may_take(runtime: Runtime, folder: Path) -> None:
    """As a server of several models does before it loads one."""
    found = weigh(RuntimeConfig(model=folder, offload_experts=10 * EACH, **HERE))
    assert found.need - found.smallest == runtime.stats().weight_bytes


def test_with_room_for_all_each_is_read_once(folder: Path, want: list[Sequence[int]]) -> None:
    with Runtime(folder, offload_experts="1GiB", **HERE) as runtime:
        for _ in range(2):
            assert [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)] == want
        found = runtime.stats().experts
        assert found is not None
        assert found.places == 24 >= found.misses
        assert found.hit_rate > 0.9


@pytest.mark.promise("P27")
def test_what_cannot_be_read_ends_the_requests_of_that_step_and_no_others(
    folder: Path, want: list[Sequence[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs, and one waits for its place, when a disk fails once."""
    read, reads = os.preadv, 0

    def preadv(*arguments: Any) -> int:
        nonlocal reads
        if threading.current_thread().name.startswith("kvrt-experts"):
            reads += 1
            if reads == 40:
                raise OSError(5, "Input/output error")
        return read(*arguments)

    options: dict[str, Any] = {**HERE, "max_running": 1, "offload_experts": 4 * EACH}
    with Runtime(folder, **options) as runtime:
        monkeypatch.setattr(os, "preadv", preadv)
        streams = [runtime.stream(prompt, PARAMS) for prompt in PROMPTS[:2]]
        with pytest.raises(
            WeightsUnreadable, match=r"model\.safetensors.*Input/output error"
        ) as failed:
            list(streams[0])
        told = refusal_of(failed.value)
        assert told.status == 503
        assert "model.safetensors" not in told.message, "clients learn no path of the server's"
        list(streams[1])
        assert streams[1].result.token_ids == want[1]
        assert [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)] == want
        assert runtime.ended is None


def test_a_runtime_that_sleeps_brings_experts_again(
    runtime: Runtime, want: list[Sequence[int]]
) -> None:
    runtime.generate(PROMPTS, PARAMS)
    runtime.sleep(2)
    found = runtime.stats().experts
    assert found is not None
    assert found.held == 0
    runtime.wake()
    assert [result.token_ids for result in runtime.generate(PROMPTS, PARAMS)] == want


def test_less_memory_than_the_experts_of_one_token_take_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the 3 experts that a token has") as refused:
        Runtime(folder, offload_experts=3 * EACH - 1, **HERE)
    assert refused.value.fix == f"give at least {3 * EACH}; all experts take {24 * EACH} bytes"
    Runtime(folder, offload_experts=3 * EACH, **HERE).close()
