"""Whole models with random weights: one stream, a step's overhead, and many requests.

Decoding one token reads every weight once, except the rows of the embedding that it does not need,
so the bytes of the others over the device's copy bandwidth is the least time a token can take.
"""

import gc
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kvrt.engine.engine import Engine
from kvrt.engine.request import Request
from kvrt.errors import KvrtError
from kvrt.kv.memory import Memory
from kvrt.model.spec import ModelSpec
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import ITEM_BYTES
from tests.bench.gpu.rows import Rows
from tests.bench.gpu.timing import Clock

ONE, STEP, MANY = "one stream, bf16", "decode step, batch 64", "256 requests"
CONTINUOUS = "transformers' continuous batching"
BASE: dict[str, Any] = {"torch_dtype": "bfloat16", "hidden_act": "silu"}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
AIMED = "Llama-3.1-8B"
STEP_MODEL = "Qwen3-0.6B"
ROOM = 4096
"""Tokens of the longest context asked for."""


@contextmanager
def config_of(name: str, *, small: bool) -> Iterator[Path]:
    """A folder with a config.json of that shape."""
    with tempfile.TemporaryDirectory() as folder:
        config = BASE | SHAPES[name] | (TINY if small else {})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


@contextmanager
def runtime_of(folder: Path, backend: str, **options: Any) -> Iterator[Runtime]:
    """One that reuses nothing: the prompts are the same in every round."""
    with Runtime(
        folder, backend=backend, load_format="dummy", dtype="bfloat16", seed=0,
        max_model_len=ROOM, prefix_cache=False, **options,
    ) as runtime:  # fmt: skip
        yield runtime
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prompts_of(count: int, low: int, high: int, vocab: int) -> list[list[int]]:
    """The same token ids every time, different ones for each prompt."""
    rng = random.Random(0)
    return [rng.choices(range(3, vocab), k=rng.randint(low, high)) for _ in range(count)]


def read_bytes(spec: ModelSpec, weight_bytes: int) -> int:
    """Bytes of weights that one decoded token reads."""
    item = ITEM_BYTES["bfloat16"]
    return weight_bytes - (0 if spec.tied else spec.vocab * spec.hidden * item)


# --- one stream ------------------------------------------------------------------------------


def one_stream(backend: str, clock: Clock, rows: Rows, *, small: bool) -> None:
    bandwidth = clock.copy_bandwidth()
    rows.add(ONE, "the device's limit", "torch copy", bytes_per_s=bandwidth)
    new, repeats = (8, 2) if small else (128, 3)
    for name in SHAPES:
        case = f"{name} shape, 128 prompt + {new} new tokens"
        try:
            with config_of(name, small=small) as folder, runtime_of(folder, backend) as runtime:
                limit = bandwidth / read_bytes(runtime.model.spec, runtime.model.weight_bytes)
                prompt = prompts_of(1, 128, 128, runtime.model.spec.vocab)
                rates = [_rate(runtime, prompt, new) for _ in range(1 + repeats)][1:]
                load = runtime.stats().load_seconds
        except Exception as error:  # out of memory, say: the other shape may still fit
            rows.skip(ONE, case, "kvrt", error)
            continue
        rate = sorted(rates)[len(rates) // 2]
        rows.add(ONE, case, "kvrt", tokens_per_s=rate, of_weight_bandwidth=rate / limit,
                 load_seconds=load)  # fmt: skip
        if name == AIMED:
            rows.aim(ONE, f"part of the weight bandwidth, {name} shape", rate / limit, 0.8)
    _transformers_stream(clock, rows, new, small=small)


def _rate(runtime: Runtime, prompt: list[list[int]], new: int) -> float:
    (result,) = runtime.generate(prompt, SamplingParams(max_tokens=new, ignore_eos=True))
    if result.error is not None:
        raise result.error
    return (new - 1) / (result.timings.total - result.timings.first_token)


def _transformers_model(folder: Path, clock: Clock) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with clock.device:
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _transformers_stream(clock: Clock, rows: Rows, new: int, *, small: bool) -> None:
    case = f"{STEP_MODEL} shape, 128 prompt + {new} new tokens"
    try:
        with config_of(STEP_MODEL, small=small) as folder, torch.inference_mode():
            model = _transformers_model(folder, clock)
            prompt = torch.randint(3, 300, (1, 128), device=clock.device)

            def generate(count: int) -> object:
                return model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
                    min_new_tokens=count, do_sample=False, pad_token_id=0,
                )  # fmt: skip

            generate(new)
            whole = clock.host_seconds(lambda: generate(new))
            seconds = whole - clock.host_seconds(lambda: generate(1))
    except Exception as error:  # whatever a package that is not ours says
        rows.skip(ONE, case, "transformers", error)
    else:
        rows.add(ONE, case, "transformers", tokens_per_s=(new - 1) / seconds)


# --- a step's overhead -----------------------------------------------------------------------


def step_overhead(backend: str, clock: Clock, rows: Rows, *, small: bool) -> None:
    """How much longer a decode step takes than the device needs for it.

    step      the engine's whole step: plan, apply, run, sample, stream
    device    the same forward pass, again and again without a pause
    submit    the host's part of a forward pass, while the device is idle
    """
    from kvrt.config import RuntimeConfig
    from kvrt.engine.sizing import make_cache
    from kvrt.model.loader import load_model
    from kvrt.registry import open_device
    from kvrt.sched.plan import Limits
    from kvrt.sched.policy import POLICIES

    count, rounds = (4, 5) if small else (64, 100)
    case = f"{STEP_MODEL} shape, context 64 to {64 + 2 * rounds}"
    with config_of(STEP_MODEL, small=small) as folder:
        config = RuntimeConfig(
            model=folder, backend=backend, load_format="dummy", dtype="bfloat16",
            max_model_len=ROOM, max_running=count,
        )  # fmt: skip
        device = open_device(backend, 0, check_layers=False)  # as a runtime does
        model = load_model(folder, device, dtype="bfloat16", load_format="dummy",
                           max_model_len=ROOM)  # fmt: skip
        executor, cache = make_cache(config, device, model)
        engine = Engine(model, executor, Memory(cache), Limits(8192, count), POLICIES["fcfs"])
        params = SamplingParams(max_tokens=3 * rounds + 16, ignore_eos=True)
        for n, prompt in enumerate(prompts_of(count, 64, 64, model.spec.vocab)):
            engine.add(
                Request(
                    id=str(n),
                    prompt=tuple(prompt),
                    params=params,
                    seed=0,
                    max_len=ROOM,
                    priority=0,
                    detokenizer=lambda: None,
                    deliver=lambda _: None,
                )
            )
        for _ in range(5):  # the prompts, the recording, and steps that warm up
            engine.step()
        clock.synchronize()
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begin)
        step = sorted(times)[rounds // 2]
        sequences = list(range(1, count + 1))
        batches = executor.batches(cache.step(sequences, [1] * count))
        tokens, every = torch.full((count,), 5), torch.arange(count)

        def forward() -> torch.Tensor:
            return model.decoder.forward(tokens, batches, every)

        on_device = clock.back_to_back(forward)
        submit = []
        for _ in range(rounds):
            clock.synchronize()
            begin = time.perf_counter()
            forward()
            submit.append(time.perf_counter() - begin)
        engine.abort_all(KvrtError("measured"))
        cache.close()
        device.close()
    overhead = step - on_device
    rows.add(STEP, case, "kvrt", step=step, device=on_device, overhead=overhead,
             submit=sorted(submit)[rounds // 2])  # fmt: skip
    rows.aim(STEP, "overhead of a step on the host, seconds", overhead, 300e-6, most=True)


# --- many requests ---------------------------------------------------------------------------


def many_requests(backend: str, clock: Clock, rows: Rows, *, small: bool) -> None:
    count, low, high, new = (6, 5, 20, 8) if small else (256, 64, 512, 128)
    case = f"{STEP_MODEL} shape, {count} requests, {low} to {high} prompt + {new} new tokens"
    vocab = TINY["vocab_size"] if small else SHAPES[STEP_MODEL]["vocab_size"]
    prompts = prompts_of(count, low, high, vocab)
    total = sum(map(len, prompts)) + count * new
    rates = {}
    for by, measure in (("kvrt", _of_runtime), (CONTINUOUS, _of_transformers)):
        try:
            with config_of(STEP_MODEL, small=small) as folder:
                seconds, more = measure(folder, backend, clock, prompts, new)
        except Exception as error:  # the other is still of interest
            rows.skip(MANY, case, by, error)
            continue
        rates[by] = total / seconds
        new_rate = count * new / seconds
        rows.add(MANY, case, by, tokens_per_s=rates[by], new_tokens_per_s=new_rate, **more)
    if len(rates) == 2:
        rows.add(MANY, case, "kvrt", times_transformers=rates["kvrt"] / rates[CONTINUOUS])


def _of_runtime(
    folder: Path, backend: str, clock: Clock, prompts: list[list[int]], new: int
) -> tuple[float, dict[str, Any]]:
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    options = {"max_running": len(prompts), "max_batch_tokens": 8192}
    with runtime_of(folder, backend, **options) as runtime:
        runtime.generate(prompts, params)
        begin = time.perf_counter()
        results = runtime.generate(prompts, params)
        seconds = time.perf_counter() - begin
        for result in results:
            if result.error is not None:
                raise result.error
        return seconds, {"kv_peak_bytes": runtime.stats().cache.peak_mapped_bytes}


def _of_transformers(
    folder: Path, backend: str, clock: Clock, prompts: list[list[int]], new: int
) -> tuple[float, dict[str, Any]]:
    """With the attention it chooses, and after a run that warms up and records its steps."""
    from transformers import GenerationConfig

    model = _transformers_model(folder, clock)
    options = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def generate() -> dict[str, Any]:
        answers: dict[str, Any] = model.generate_batch(
            inputs=prompts, generation_config=options, persistent_manager=True
        )
        return answers

    try:
        generate()
        begin = time.perf_counter()
        answers = generate()
        seconds = time.perf_counter() - begin
        chosen = str(model.config._attn_implementation)
    finally:
        model.destroy_cached_continuous_batching_manager()
    made = sum(len(answer.generated_tokens) for answer in answers.values())
    if made != len(prompts) * new:
        raise RuntimeError(f"{made} new tokens instead of {len(prompts) * new}")
    return seconds, {"attention": chosen}
