"""Runs vLLM on a CPU, in an environment that has it, and says what came of it as lines of JSON.

    python vllm_engine.py MODEL '{"rounds": [[2, 300], [4, 700]], "connector": {}, "engine": {}}'

A round is so many prompts of so many tokens, all at once; `connector` are the options of kvrt's
connector, or null for vLLM as it is. With `wait`, it says that it is ready and goes on at a line.
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
    model, plan = sys.argv[1], json.loads(sys.argv[2])
    options = plan.get("engine", {})
    if plan["connector"] is not None:
        options["kv_transfer_config"] = {
            "kv_connector": "ElasticConnector",
            "kv_connector_module_path": "kvrt.integrations.vllm",
            "kv_role": "kv_both",
            "kv_connector_extra_config": plan["connector"],
        }
    from vllm import LLM, SamplingParams

    engine = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=2048, seed=0,
        skip_tokenizer_init=True,
        **({"kv_cache_memory_bytes": 512 << 20} | options),
    )  # fmt: skip
    say(loaded=idle_resident(), pids=[p.pid for p in psutil.Process().children(recursive=True)])
    if plan.get("wait"):
        sys.stdin.readline()
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    for count, length in plan["rounds"]:
        draw = random.Random(length)
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
