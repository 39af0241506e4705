"""Runs vLLM on a CPU, in an environment that has it, and says what came of it as lines of JSON.

    python vllm_engine.py MODEL '{"kv_transfer_config": null}' <<< '[4, 700, 0]'

The second argument are more of vLLM's options. It says that it is ready, and then answers each line
that it reads: so many prompts of so many tokens, drawn by that seed, all at once; and what kvrt's
metrics are then.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import psutil

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def resident() -> int:
    """Bytes of anonymous memory of all its processes."""
    every = psutil.Process().children(recursive=True)
    return max(process.memory_full_info().uss for process in every)


def idle_resident() -> int:
    """The same, once it does not fall any more."""
    least = resident()
    for _ in range(20):
        time.sleep(0.1)
        least = min(least, resident())
    return least


def computed() -> float:
    """Seconds that all its processes have computed."""
    nanoseconds = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            nanoseconds += int(path.read_text().split()[0])
    return nanoseconds / 1e9


def main() -> None:
    model, options = sys.argv[1], json.loads(sys.argv[2])
    from prometheus_client import REGISTRY
    from vllm import LLM, SamplingParams

    engine = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=2048, seed=0,
        skip_tokenizer_init=True, disable_log_stats=False,
        **({"kv_cache_memory_bytes": 512 << 20} | options),
    )  # fmt: skip
    say(loaded=idle_resident(), pids=[p.pid for p in psutil.Process().children(recursive=True)])
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    for line in sys.stdin:
        count, length, seed = json.loads(line)
        draw = random.Random(seed)
        prompts = [[draw.randrange(3, 900) for _ in range(length)] for _ in range(count)]
        computed_before, begun = computed(), time.perf_counter()
        answers = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False
        )
        seconds = time.perf_counter() - begun
        say(
            tokens=[list(answer.outputs[0].token_ids) for answer in answers],
            cached=sum(answer.num_cached_tokens or 0 for answer in answers),
            seconds=seconds, computed=computed() - computed_before,
            metrics={
                sample.name: sample.value
                for metric in REGISTRY.collect() if metric.name.startswith("kvrt:")
                for sample in metric.samples
            },
        )  # fmt: skip
    engine.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
