"""A device computes what the CPU backend computes, and what transformers does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import kvrt.engine.assembly
from kvrt.model.loader import load_model
from kvrt.outputs import Result
from kvrt.registry import load
from kvrt.sampling import SamplingParams
from kvrt.spi import Device, GraphCapture
from kvrt.wrappers import Checked, Wrapper
from tests.gpu.conftest import MakeRuntime
from tests.model.checkpoints import FAMILIES, VOCAB
from tests.model.stepping import stepping

pytestmark = pytest.mark.extra

SHOWN = [
    *(name for name in FAMILIES if name.startswith(("llama", "smollm", "qwen"))),
    *("mistral", "ministral-3", "gemma-2", "gemma-3", "granite", "phi-3", "olmo-2", "cohere-2"),
    *("nemotron", "mixtral", "granite-moe", "gpt-oss", "deepseek-3", "lfm-2", "granite-4"),
    "falcon-h1",
]
"""Families that differ in the operators that they call."""

MIXED = {name for name, given in FAMILIES.items() if any("expert" in key for key in given)}
"""Those that are mixtures of experts."""

NEW = 48
LENGTHS = (1, 5, 16, 17, 40, 100, 123)
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)


def prompt(length: int) -> list[int]:
    random = torch.Generator().manual_seed(length)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


PROMPTS = [prompt(length) for length in LENGTHS]


def tokens(results: list[Result]) -> list[tuple[int, ...]]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_ids for result in results]


class Eager(Wrapper):
    """A device that records nothing."""

    def extension(self, kind: type) -> Any:
        return None if kind is GraphCapture else super().extension(kind)


def transformers_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> Tensor:
    """float32 [tokens, vocab], computed on the host in `dtype` from the weights as stored."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].float()


def gap(logits: Tensor) -> str:
    best = logits.topk(2).values
    return f"the best two logits are {float(best[0] - best[1]):.3g} apart"


@pytest.mark.parametrize("family", SHOWN)
def test_greedy_tokens_in_float32_are_those_of_the_cpu_backend_and_of_transformers(
    family: str, backend: str, folder_of: Callable[[str], Path], make_runtime: MakeRuntime
) -> None:
    """Prompts come in pieces, among sequences that decode: every kind of step takes part."""
    folder = folder_of(family)
    options = {"dtype": "float32", "max_batch_tokens": 64}
    got = tokens(make_runtime(folder, backend=backend, **options).generate(PROMPTS, GREEDY))
    want = tokens(make_runtime(folder, backend="cpu", **options).generate(PROMPTS, GREEDY))
    for start, ours, theirs in zip(PROMPTS, got, want, strict=True):
        logits = transformers_logits(folder, [*start, *theirs], torch.float32)[len(start) - 1 : -1]
        at = next((n for n in range(NEW) if ours[n] != theirs[n]), 0)
        assert ours == theirs, f"token {at} after {len(start)}: {gap(logits[at])}"
        # transformers would have chosen each token, given those before: so by induction its own
        # greedy continuation is this one.
        assert logits.argmax(-1).tolist() == list(ours)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_greedy_tokens_of_weights_of_codes_are_those_of_the_cpu_backend(
    quantize: str, backend: str, folder_of: Callable[[str], Path], make_runtime: MakeRuntime
) -> None:
    """Of codes multiplied with activations as they are; steps of many tokens, and recorded ones."""
    options = {
        "dtype": "float32", "max_batch_tokens": 64,
        "quantize": quantize, "quantized_dir": None, "activations": "exact",
    }  # fmt: skip
    folder = folder_of("qwen-3")
    got = tokens(make_runtime(folder, backend=backend, **options).generate(PROMPTS, GREEDY))
    want = tokens(make_runtime(folder, backend="cpu", **options).generate(PROMPTS, GREEDY))
    assert got == want


@pytest.mark.parametrize("family", SHOWN)
def test_logits_in_float32_are_those_of_transformers(
    family: str, device: Device, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(family)
    for length in LENGTHS:
        got = prompt_logits(folder, device, "float32", length)
        want = transformers_logits(folder, prompt(length), torch.float32)
        assert (got - want).abs().max() / want.abs().max() < 1e-4, f"a prompt of {length}"


@pytest.mark.parametrize("family", SHOWN)
def test_logits_in_bfloat16_are_as_near_to_the_true_ones_as_those_of_transformers(
    family: str, device: Device, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The truth is float32 arithmetic on the same weights, which bfloat16 holds exactly."""
    if "bfloat16" not in device.info.weight_dtypes:
        pytest.skip("the device has no bfloat16")
    rounded = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder_of(family) / name).read_bytes())
    ours, theirs = [], []
    for length in LENGTHS:
        truth = transformers_logits(tmp_path, prompt(length), torch.float32)
        peer = transformers_logits(tmp_path, prompt(length), torch.bfloat16)
        got = prompt_logits(tmp_path, device, "bfloat16", length)
        for found, of in ((theirs, peer), (ours, got)):
            found.append((of - truth).norm(dim=-1) / truth.norm(dim=-1))
    if family in MIXED:  # rounding sends a token to other experts now and then, here and there
        assert torch.cat(ours).median() < 2 * torch.cat(theirs).median() + 1e-3
        return
    for length, one, other in zip(LENGTHS, ours, theirs, strict=True):
        assert one.mean() < 2 * other.mean() + 1e-3, f"a prompt of {length}"


def prompt_logits(folder: Path, device: Device, dtype: Any, length: int) -> Tensor:
    """Logits of every token of a prompt, read at once, with nothing recorded."""
    eager = Eager(device)
    model = load_model(folder, eager, dtype=dtype)
    with stepping(model, eager, texts=1, longest=length, kv=dtype) as stepper:
        text = stepper.add(prompt(length))
        stepper.step([(text, length)])
        return torch.stack(text.logits).float()


@pytest.fixture
def nothing_recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, lets the runtimes made from then on record no steps."""

    def open_device(name: str, index: int, *arguments: Any, **options: Any) -> Device:
        return Checked(Eager(load(name).open(index)))

    return lambda: monkeypatch.setattr(kvrt.engine.assembly, "open_device", open_device)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_recorded_steps_give_the_tokens_of_steps_that_are_not(
    count: int,
    backend: str,
    folder_of: Callable[[str], Path],
    make_runtime: MakeRuntime,
    nothing_recorded: Callable[[], None],
) -> None:
    options = {"backend": backend, "dtype": "float32", "prefix_cache": False}
    folder = folder_of("qwen-3")
    recorded = make_runtime(folder, **options)
    if recorded.device.extension(GraphCapture) is None:
        pytest.skip("the device records nothing")
    got = [tokens(recorded.generate(PROMPTS[:count], GREEDY)) for _ in range(2)]
    nothing_recorded()
    eager = make_runtime(folder, **options)
    assert eager.device.extension(GraphCapture) is None
    assert got == 2 * [tokens(eager.generate(PROMPTS[:count], GREEDY))]


def test_sequences_that_lose_their_pages_give_the_same_tokens(
    backend: str, folder_of: Callable[[str], Path], make_runtime: MakeRuntime
) -> None:
    folder, params = folder_of("llama-3"), SamplingParams(max_tokens=150, ignore_eos=True)
    options = {"backend": backend, "dtype": "float32", "page_size": 64}
    roomy = make_runtime(folder, **options)
    many = [prompt(30 + n) for n in range(40)]
    limit = roomy.stats().weight_bytes + 2 * roomy.device_info.granularity
    tight = make_runtime(folder, **options, memory_limit=limit)
    results = tight.generate(many, params)
    assert sum(result.usage.preemptions for result in results) > 0
    assert tokens(results) == tokens(roomy.generate(many, params))


@pytest.mark.parametrize("tiers", ["host:256MiB", "disk:{}:256MiB"])
def test_pages_that_are_reused_moved_or_saved_give_the_same_tokens(
    tiers: str,
    backend: str,
    folder_of: Callable[[str], Path],
    make_runtime: MakeRuntime,
    tmp_path: Path,
) -> None:
    """Without patience for unused pages, each leaves the device when nothing runs."""
    folder, params = folder_of("llama-3"), SamplingParams(max_tokens=30, ignore_eos=True)
    many = [prompt(70 + n) for n in range(12)]
    options = {"backend": backend, "dtype": "float32", "preemption": "move"}
    right = tokens(make_runtime(folder, **options, prefix_cache=False).generate(many, params))

    reusing = make_runtime(folder, **options)
    assert tokens(reusing.generate(many, params)) == right
    again = reusing.generate(many, params)
    assert tokens(again) == right
    assert sum(result.usage.cached_tokens for result in again) > 0
    assert reusing.save_cache(tmp_path / "saved") > 0

    restored = make_runtime(folder, **options)
    assert restored.load_cache(tmp_path / "saved") > 0
    moving = make_runtime(
        folder, **options, offload=tiers.format(tmp_path / "tier"), prefix_cache_ttl=0.0
    )
    assert tokens(moving.generate(many, params)) == right
    end = time.monotonic() + 20
    while moving.stats().cache.cached_pages and time.monotonic() < end:
        time.sleep(0.01)
    for runtime in (restored, moving):
        assert tokens(runtime.generate(many, params)) == right
        stats = runtime.stats().offload
        assert stats is not None
        assert stats.fetched_pages > 0
