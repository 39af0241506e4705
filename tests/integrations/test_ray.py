"""Replicas and batches on a Ray cluster of this machine: run by ``ci/ray``."""

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kvrt
from kvrt.runtime import Runtime

PYTHON = os.environ.get("PYTHON_WITH_RAY", "")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_RAY names none: see ci/ray"),
]

CLUSTER = Path(__file__).parent / "ray_cluster.py"
PROMPTS = ["def read_lines(path):", "def add(a, b):", "class Stack:", "import os\n"]


def on_cluster(*args: str) -> Any:
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [PYTHON, str(CLUSTER), *args], env=env, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def served() -> Any:
    return on_cluster("serve")


@pytest.fixture(scope="module")
def runtime() -> Any:
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        yield runtime


def test_the_text_is_the_runtimes(served: Any, runtime: Runtime) -> None:
    right = [r.text for r in runtime.generate(PROMPTS, kvrt.SamplingParams(max_tokens=24))]
    assert served["texts"] == right
    lines = served["example"].splitlines()
    whole = [ast.literal_eval(line) for line in lines[: len(PROMPTS)]]
    assert whole == [prompt + text for prompt, text in zip(PROMPTS, right, strict=True)]
    # Behind it, Ray may say something of its own.
    assert "\n".join(lines[len(PROMPTS) :]).startswith(right[0].rstrip("\n"))


def test_what_is_refused_is_refused_by_its_name(served: Any) -> None:
    adapter, context = served["refused"]
    assert adapter.startswith("RequestError: ")
    assert "adapter" in adapter
    assert context.startswith("ContextFull: ")


def test_a_conversation_goes_where_its_pages_are(served: Any) -> None:
    """Of eight on two replicas: by chance, all would find theirs one time in 65,536."""
    for _, *further in served["cached"]:
        assert min(further) >= 96


def test_a_stream_that_is_left_ends_its_request(served: Any) -> None:
    assert served["left"] < 0.5


def test_a_replica_that_is_killed_costs_no_request_and_no_stream(served: Any) -> None:
    killed = served["killed"]
    assert killed["replicas"] == 2
    assert min(killed["spread"]) > 0.0  # both had something to do
    assert killed["done"] < 16
    assert killed["streams"]
    assert killed["whole"]
    assert killed["again"]


def test_rows_of_a_data_set_are_answered_once_though_an_actor_is_killed(
    tmp_path: Path, runtime: Runtime
) -> None:
    found = on_cluster("data", str(tmp_path))
    assert found["status"] == 0
    answers = sorted(found["answers"], key=lambda row: row["number"])
    assert [row["number"] for row in answers] == [*range(400)]
    assert [row["number"] for row in answers if row["error"]] == [7]
    params = kvrt.SamplingParams(max_tokens=24)
    for row in answers[:4]:
        assert row["text"] == runtime.generate(row["prompt"], params)[0].text
        assert row["tokens"] > 0
