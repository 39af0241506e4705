"""What a process takes of memory beside weights and KV, as the operating system counts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvrt.model.config import read_config
from kvrt.model.weights.weights import weights_of

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""54 million numbers, so that what is kept twice is found."""

PROBE = """
import ctypes, json, sys
from pathlib import Path

MADV_POPULATE_READ = 22

def resident(what):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(what + ":")[2].split()[0]) * 1024

def map_libraries():
    # How much of a library a process maps beside what it uses depends on what the page cache
    # holds of it, and in pieces of which size: with all of it mapped, that can't be mistaken
    # for memory of ours.
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        if ".so" in line:
            first, end = (int(at, 16) for at in line.split()[0].split("-"))
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_POPULATE_READ)

import torch
import kvrt
map_libraries()
libraries = resident("VmRSS")
with kvrt.Runtime(sys.argv[1], backend="cpu", threads=2, **json.loads(sys.argv[2])) as runtime:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    prompts = [[(7 * at + which) % 8000 for at in range(500)] for which in range(3)]
    params = kvrt.SamplingParams(max_tokens=8, ignore_eos=True)
    results = runtime.generate(prompts, params)
    assert all(len(result.token_ids) == 8 for result in results)
    stats = runtime.stats()
    own = resident("VmHWM") - libraries - stats.weight_bytes - stats.cache.peak_mapped_bytes
    experts = 0 if stats.experts is None else stats.experts.misses
    print(json.dumps([own >> 20, stats.weight_bytes >> 20, experts]))
"""

MIXTURE = SHAPE | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 512,
    "num_local_experts": 24,
    "num_experts_per_tok": 2,
    "intermediate_size": 1024,
}
"""216 MiB of experts, in bfloat16."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("resident"), SHAPE)


def save(folder: Path, shape: dict[str, object]) -> Path:
    """A model of random numbers."""
    (folder / "config.json").write_text(json.dumps(shape))
    numbers = torch.randn(1 << 22).mul_(0.02).bfloat16()
    tensors = {
        part.name: numbers[: part.numel].view(part.shape).clone()
        if part.numel <= len(numbers)
        else numbers.repeat(part.numel // len(numbers)).view(part.shape)
        for weight in weights_of(read_config(folder / "config.json"))
        for part in weight.parts
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"quantize": "int4", "quantized_dir": None},
        {"quantize": "int4", "load_format": "dummy"},
    ],
    ids=["file", "quantised", "dummy"],
)
def test_a_run_takes_little_memory_beside_weights_and_kv(
    folder: Path, options: dict[str, object]
) -> None:
    own, weights, _ = probe(folder, options)
    assert weights > (100 if "dtype" in options else 30)
    assert own < 75, "a copy of the weights would add 35 at least"


def test_experts_that_are_read_as_needed_take_what_they_may(tmp_path: Path) -> None:
    """All are needed, and read, while few have room."""
    own, weights, read = probe(save(tmp_path, MIXTURE), {"offload_experts": "32MiB"})
    assert read >= 3 * 24
    assert weights < 32 + 30, "and what is not experts"
    assert own < 75, "all experts would add 180 at least"


def probe(folder: Path, options: dict[str, object]) -> list[int]:
    """MiB beside weights and KV, and of weights; experts that were read."""
    command = [sys.executable, "-c", PROBE, str(folder), json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(result.stdout)
    return found
