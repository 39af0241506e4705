"""Core, engine, an emulated GPU's memory and copies, and the GPU's own kernels, all in one run."""

import os
import time
from pathlib import Path

import pytest

import kvrt.engine.assembly
from kvrt.registry import load
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import DenseOps, Device, DeviceOptions
from kvrt.testing.packing import PackingDevice
from kvrt.wrappers import Checked
from tests.emulator.inside.conftest import CONFIG, make_model
from tests.emulator.inside.test_runtime import tokens

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)

SMALL = {**CONFIG, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
PROMPTS = [[3, 1, 4, 1, 5], list(range(20, 41))]
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.0)
FEW = SamplingParams(max_tokens=2, ignore_eos=True, temperature=0.0)
"""Where layers take the interpreter long."""


def test_tokens_are_those_of_the_cpu_backend(tmp_path: Path, vendor: str) -> None:
    make_model(tmp_path, SMALL)
    answers = []
    for backend in (vendor, "cpu"):
        with Runtime(
            tmp_path, backend=backend, load_format="dummy", seed=1, memory_limit="16MiB"
        ) as runtime:
            assert runtime.device.extension(DenseOps) is not None  # type: ignore[type-abstract]
            answers.append(tokens(runtime.generate(PROMPTS, GREEDY)))
        runtime.device.close()
    assert answers[0] == answers[1]


def test_a_mixture_of_experts_says_what_it_says_on_the_cpu(tmp_path: Path, vendor: str) -> None:
    """All experts of a layer in one call."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    make_model(tmp_path, SMALL | experts | {"architectures": ["MixtralForCausalLM"]})
    answers = []
    for backend in (vendor, "cpu"):
        with Runtime(
            tmp_path, backend=backend, load_format="dummy", seed=1, memory_limit="16MiB"
        ) as runtime:
            assert not any("one expert after the other" in note for note in runtime.model.notes)
            answers.append(tokens(runtime.generate(PROMPTS, FEW)))
        runtime.device.close()
    assert answers[0] == answers[1]


def test_a_model_with_a_recurrence_says_what_it_says_on_the_cpu(
    tmp_path: Path, vendor: str
) -> None:
    """Twice, so that the second time a prompt begins at a page's border."""
    hybrid = {"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "conv_L_cache": 3,
              "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}  # fmt: skip
    make_model(tmp_path, SMALL | hybrid)
    answers = []
    for backend in (vendor, "cpu"):
        with Runtime(
            tmp_path, backend=backend, load_format="dummy", seed=1, memory_limit="16MiB"
        ) as runtime:
            answers += [tokens(runtime.generate(PROMPTS, FEW)) for _ in range(2)]
        runtime.device.close()
    assert answers == [answers[0]] * 4


def test_tokens_after_pages_that_moved_or_were_saved_are_those_of_the_cpu_backend(
    tmp_path: Path, vendor: str
) -> None:
    """Without patience for unused pages, each is moved to the host when its request has ended."""
    make_model(tmp_path, SMALL)
    prompts = [list(range(20, 41))]
    answers = []
    for backend, tiers in (("cpu", {}), (vendor, {"offload": "host:16MiB"}), (vendor, {})):
        saved = {} if tiers or backend == "cpu" else {"cache_dir": tmp_path / "saved"}
        for _ in range(1 + bool(saved)):
            with Runtime(
                tmp_path, backend=backend, load_format="dummy", seed=1, memory_limit="16MiB",
                prefix_cache_ttl=0.0 if tiers else 300.0, preemption="move",
                **tiers, **saved,  # type: ignore[arg-type]
            ) as runtime:  # fmt: skip
                results = runtime.generate(prompts, GREEDY)
                if tiers:
                    answers.append(tokens(results))
                    end = time.monotonic() + 20
                    while runtime.stats().cache.cached_pages and time.monotonic() < end:
                        time.sleep(0.01)
                    results = runtime.generate(prompts, GREEDY)
                    assert results[0].usage.cached_tokens == 16
                    stats = runtime.stats().offload
                    assert stats is not None
                    assert stats.fetched_pages == 1
                answers.append(tokens(results))
            runtime.device.close()
    assert results[0].usage.cached_tokens == 16
    assert answers == [answers[0]] * 5


def test_tokens_of_weights_of_codes_are_those_of_the_same_weights_multiplied_by_torch(
    tmp_path: Path, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are Q4_1, embedding and head Q8_0; activations are not rounded."""

    def cpu(name: str, index: int, options: DeviceOptions, **_: object) -> Device:
        return Checked(PackingDevice(load(name).open(index, options), exact=True))

    make_model(tmp_path, SMALL)
    greedy = SamplingParams(max_tokens=3, ignore_eos=True, temperature=0.0)
    answers = []
    for backend in (vendor, "cpu"):
        if backend == "cpu":
            monkeypatch.setattr(kvrt.engine.assembly, "open_device", cpu)
        with Runtime(
            tmp_path, backend=backend, load_format="dummy", seed=1, memory_limit="16MiB",
            quantize="int4", quantized_dir=None,
        ) as runtime:  # fmt: skip
            answers.append(tokens(runtime.generate(PROMPTS[:1], greedy)))
        runtime.device.close()
    assert answers[0] == answers[1]
