"""Servers as processes of their own, which end with the block."""

import http.client
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from tests.bench.peers.child import call, started
from tests.bench.peers.install import python_of

START_S = 300.0
SERVER = ("uvicorn==0.54.0", "fastapi==0.165.0", "sse-starlette==3.7.0", "starlette-context==0.5.1",
          "pydantic-settings==2.16.3", "PyYAML==6.0.4")  # fmt: skip
"""What llama-cpp-python's server needs beside the library."""

KVRT = "from kvrt_cli.main import main; main()"
SLOTS = 64
CONTEXT = 1024
"""Of each request, where a server wants to know."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def listening(
    command: Sequence[str | Path], port: int, log: IO[str], environ: Mapping[str, str] = {}
) -> Iterator[int]:
    """A server, from when it answers: one that listens while it loads says 503. Its port.

    Raises:
        TimeoutError: it does not; its words are in the log.
    """
    with started(command, log, environ, stdout=log) as process:
        end = time.monotonic() + START_S
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"{command[0]} does not serve: its words are in the log")
            if _answers(port):
                break
            time.sleep(0.1)
        yield port


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status != 503
        except (OSError, http.client.HTTPException):
            return False


@contextmanager
def kvrt(model: Path, threads: int, log: IO[str], *options: str) -> Iterator[int]:
    port = free_port()
    command = [
        sys.executable, "-c", KVRT, "serve", model, "--backend", "cpu", "--port",
        str(port), "--threads", str(threads), "--alias", "m", *options,
    ]  # fmt: skip
    with listening(command, port, log) as port:
        yield port


@contextmanager
def llama_cpp_python(model: Path, threads: int, log: IO[str], work: Path) -> Iterator[int]:
    """The server that comes with llama.cpp's Python package. It answers one request at a time;
    as it is set up here, none ends because another comes.

    Raises:
        CalledProcessError: it cannot be installed.
    """
    python = python_of("llama.cpp", work)
    call([python, "-m", "pip", "install", *SERVER], work / "llama.cpp.install.log")
    port = free_port()
    command = [
        python, "-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1", "--port",
        str(port), "--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx",
        str(2 * CONTEXT), "--interrupt_requests", "False",
    ]  # fmt: skip
    with listening(command, port, log) as port:
        yield port


@contextmanager
def llama_server(model: Path, threads: int, log: IO[str], binary: Path) -> Iterator[int]:
    """llama.cpp's own server, where somebody has built it."""
    port = free_port()
    command = [
        binary, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--threads",
        str(threads), "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--offline",
    ]  # fmt: skip
    with listening(command, port, log, {"LD_LIBRARY_PATH": os.fspath(binary.parent)}) as port:
        yield port


@contextmanager
def vllm(model: Path, threads: int, log: IO[str], python: Path) -> Iterator[int]:
    """vLLM's server on the CPU, of an environment that has it; in bfloat16, as all that it offers
    there."""
    port = free_port()
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name",
        "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len",
        str(CONTEXT), "--max-num-seqs", str(SLOTS), "--enforce-eager",
    ]  # fmt: skip
    environ = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with listening(command, port, log, environ) as port:
        yield port
