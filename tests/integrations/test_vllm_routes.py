"""kvrt's routes in vLLM's own server: run by ``ci/vllm``, as `test_vllm.py` is."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integrations.test_vllm import MIB, PYTHON, elastic
from tests.model.checkpoints import make_model, save_model

pytestmark = [
    pytest.mark.extra,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_VLLM names none: see ci/vllm"),
]

KEY = "secret"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block of 128 tokens is 1 MiB."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    more = {"num_hidden_layers": 4, "vocab_size": 1000, "max_position_embeddings": 4096}
    return save_model(make_model("llama-2", **shape, **more), tmp_path_factory.mktemp("model"))


@contextmanager
def server(model: Path, folder: Path, **environ: str) -> Iterator[httpx.Client]:
    """Of vLLM, on a share of 64 MiB, with a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "shares").mkdir(mode=0o700)
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--port", str(port),
        "--host", "127.0.0.1", "--api-key", KEY, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "2048", "--skip-tokenizer-init", "--served-model-name", "chat",
        "--kv-cache-memory-bytes", str(256 * MIB),
        "--kv-transfer-config", json.dumps(elastic(share="all:64MiB", linger=0)),
    ]  # fmt: skip
    env = {**os.environ, **QUIET, **environ, "KVRT_SHARE_DIR": str(folder / "shares")}
    log = folder / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        try:
            deadline = time.monotonic() + 900
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    pytest.fail(log.read_text()[-4000:])
                with suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.5)
            else:
                pytest.fail("vLLM does not listen")
            client.headers["Authorization"] = f"Bearer {KEY}"
            yield client
        finally:
            with suppress(psutil.NoSuchProcess):
                one = psutil.Process(process.pid)
                for each in [*one.children(recursive=True), one]:
                    each.kill()


def complete(client: httpx.Client, tokens: int) -> dict[str, Any]:
    prompt = [3 + number % 900 for number in range(tokens)]
    body = {"model": "chat", "prompt": prompt, "max_tokens": 24, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body | {"detokenize": False})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def engine(client: httpx.Client) -> dict[str, Any]:
    (found,) = client.get("/v1/kvrt/memory").raise_for_status().json()["engines"]
    assert isinstance(found, dict)
    return found


def test_memory_is_told_of_and_limited_on_vllms_own_server(model: Path, tmp_path: Path) -> None:
    with server(model, tmp_path, VLLM_PLUGINS="kvrt") as client:
        nobody = httpx.get(client.base_url.join("/v1/kvrt/memory"))
        assert nobody.status_code == 401
        before = engine(client)
        assert (before["share"], before["size"]) == ("all", 64 * MIB)
        assert complete(client, 700)["usage"]["completion_tokens"] == 24
        deadline = time.monotonic() + 60
        while (after := engine(client))["held"] > before["held"] or after["tokens"] < 24:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (after["prompt"], after["tokens"], after["running"]) == (700, 24, 0)
        limit = client.post("/v1/kvrt/limit", json={"size": "32MiB"})
        assert limit.json() == {"outcome": "applied", "revision": 1}
        small = client.post("/v1/kvrt/limit", json={"size": "4MiB"})
        assert small.status_code == 409
        assert "longest request" in small.json()["error"]["message"]
        assert client.post("/v1/kvrt/guarantee", json={"size": "16MiB"}).status_code == 200
        assert engine(client)["guaranteed"] == 16 * MIB
        assert client.post("/v1/kvrt/reclaim").status_code == 200
        assert complete(client, 1500)["usage"]["completion_tokens"] == 24
        print(f"idle {after['held'] / MIB:.0f} MiB of {after['size'] / MIB:.0f}")
