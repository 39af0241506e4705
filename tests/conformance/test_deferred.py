"""The kit and the core on a device whose copies and compute really run later (`kvrt_deferred`).

Each in a process of its own: the device is one of torch's, and torch forgets none.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distributions
import pytest

Run = Callable[..., str]

KIT = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "kvrt.testing.suite")

LATE = """
import threading, torch
from kvrt import registry
from kvrt_deferred.tensors import COMPUTE

device = registry.load("deferred").open()
gate = threading.Event()
x = torch.zeros(3, device=device.info.torch_device)
device.synchronize()
COMPUTE.post(gate.wait)
x.fill_(2)
fence = device.fence()
host = torch.zeros(3)
early = device.copier.to_host(host, x)
late = device.copier.to_host(torch.zeros(3), x, fence)
assert early.wait() and host.tolist() == [0, 0, 0]
assert not fence.done() and not late.done() and not late.wait(0.01)
gate.set()
assert late.wait() and fence.done() and x.tolist() == [2, 2, 2]
device.close()
"""

SAME = """
import tempfile
from kvrt import Runtime, SamplingParams
from kvrt_deferred.tensors import CALLED

PROMPTS = ["def f(x):\\n    return x\\n\\ndef f(x):\\n    return", "import os"]
DRAWS = [
    {},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.2, "top_p": 0.5},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.5, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 0.6, "logprobs": 3, "prompt_logprobs": 2},
    {"temperature": 1.0, "n": 3},
    {"beam_width": 3, "n": 2, "logprobs": 1},
    {"speculate": 4},
    {"speculate": 4, "temperature": 0.8, "logprobs": 2},
    {"stop": ["return"], "ignore_eos": True},
]

def texts(backend):
    with tempfile.TemporaryDirectory() as cache, Runtime(
        "tiny", backend=backend, cache_dir=cache
    ) as runtime:
        return [
            [
                [completion.text for completion in result.completions]
                for result in runtime.generate(
                    PROMPTS, SamplingParams(**{"max_tokens": 12, "seed": 1} | draw)
                )
            ]
            for draw in DRAWS
        ]

for draw, late, at_once in zip(DRAWS, texts("deferred"), texts("null"), strict=True):
    # Sums are taken in another order there, and then a draw may fall the other way.
    assert late == at_once or "temperature" in draw, draw
asked = set(CALLED)

import torch
from kvrt import registry
from kvrt.testing.operators import LAYERS, SAMPLING

CALLED.clear()
x = torch.randn(6, 8)
with torch.inference_mode():
    for example in [*LAYERS.values(), *SAMPLING.values()]:
        example(lambda tensor: tensor.to("deferred"), x)
missing = sorted(asked - set(CALLED))
assert not missing, f"kvrt.testing.operators has no example of {missing}"
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python where the backend is installed; gives what it printed."""
    site = tmp_path / "site"
    distributions.install(site, "kvrt_deferred", {"deferred": "kvrt_deferred:backend"})
    plugins = Path(distributions.__file__).parent

    def run(*arguments: str, seed: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(plugins), str(site))),
                "KVRT_DEFERRED_SEED": str(seed),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
        return result.stdout

    return run


def test_the_device_is_late_indeed(run: Run) -> None:
    run("-c", LATE)


@pytest.mark.promise("P37")
def test_the_kit_passes_for_a_correct_device_that_is_late(run: Run) -> None:
    said = run(*KIT, "--kvrt-backend", "deferred", "-k", "not thousand and not seventy")
    assert "failed" not in said
    assert "kvrt backend deferred" in said


@pytest.mark.extra
def test_and_twenty_times_in_a_row_under_load(run: Run) -> None:
    load = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        for seed in range(20):
            run(*KIT, "--kvrt-backend", "deferred", seed=seed)
    finally:
        for process in load:
            process.kill()
            process.wait()


def test_a_late_device_says_the_same_and_the_kit_tries_all_it_is_asked_for(run: Run) -> None:
    """Every way to sample, on a device without `DenseOps`: what torch is asked for there has an
    example in `kvrt.testing.operators`."""
    run("-c", SAME)
