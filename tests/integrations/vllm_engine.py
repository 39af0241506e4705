"""Runs vLLM on a CPU, in an environment that has it, and says what came of it as lines of JSON.

    python vllm_engine.py MODEL '{"kv_transfer_config": null}' <<< '[4, 700, 0]'

The second argument are more of vLLM's options. It says that it is ready, and then answers each line
that it reads: so many prompts of so many tokens, drawn by that seed, all at once.
"""

import json
import os
import random
import sys
import time

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


def main() -> None:
    model, options = sys.argv[1], json.loads(sys.argv[2])
    from vllm import LLM, SamplingParams

    engine = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=2048, seed=0,
        skip_tokenizer_init=True,
        **({"kv_cache_memory_bytes": 512 << 20} | options),
    )  # fmt: skip
    say(loaded=idle_resident(), pids=[p.pid for p in psutil.Process().children(recursive=True)])
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    for line in sys.stdin:
        count, length, seed = json.loads(line)
        draw = random.Random(seed)
        prompts = [[draw.randrange(3, 900) for _ in range(length)] for _ in range(count)]
        begun = time.perf_counter()
        answers = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False
        )
        seconds, peak = time.perf_counter() - begun, resident()
        say(
            tokens=[list(answer.outputs[0].token_ids) for answer in answers],
            cached=sum(answer.num_cached_tokens or 0 for answer in answers),
            seconds=seconds, busy=peak, idle=idle_resident(),
        )  # fmt: skip
    engine.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
