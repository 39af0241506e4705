"""What evaluates models and measures servers over HTTP: lm-eval, guidellm, aiperf."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from kvrt.bench.others import read_runs
from kvrt.bench.statistics import Figure, value
from kvrt.bench.words import Run
from kvrt.model import bundled
from tests.clients.conftest import Clients
from tests.server.conftest import Server

TINY = Path(bundled.__file__).with_name("tiny")
pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]
PAIRS = [
    ("def add(a, b):", "\n    return a + b\n"),
    ("import os", "\nimport sys\n"),
    ("class A:\n    def f(self):", "\n        return self.x"),
    ("for i in range(", "10):\n    print(i)\n"),
    ('def read(path):\n    """', 'Return the lines of a file."""\n' * 6),
]
"""Beginnings, and how they may go on."""

TASK = """task: lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{begin}}}}"
doc_to_target: "{{{{end}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_lm_evals_log_likelihoods_are_those_of_a_direct_computation(
    clients: Clients, tiny: Server, tmp_path: Path
) -> None:
    data, task = tmp_path / "lines.jsonl", tmp_path / "lines.yaml"
    data.write_text("".join(json.dumps({"begin": b, "end": e}) + "\n" for b, e in PAIRS))
    task.write_text(TASK.format(data=data))
    model = f"model=tiny,base_url={tiny.url}/v1/completions,tokenizer={TINY},max_length=1024"
    command = [clients.bin / "lm_eval", "run", "--model", "local-completions", "--tasks", task,
               "--model_args", f"{model},num_concurrent=2", "--output_path", tmp_path / "out",
               "--log_samples"]  # fmt: skip
    done = clients.run(command, tmp_path, {"HF_DATASETS_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "out").glob("*/samples_*.jsonl")
    samples = map(json.loads, path.read_text().splitlines())
    said = {sample["doc_id"]: sample for sample in samples}
    assert len(said) == len(PAIRS)
    for number, pair in enumerate(PAIRS):
        score, greedy = direct(*pair)
        given, is_greedy = said[number]["filtered_resps"][0]
        assert float(given) == pytest.approx(score, abs=1e-3)
        assert str(is_greedy) == str(greedy)


def direct(begin: str, end: str) -> tuple[float, bool]:
    """By transformers: the log-likelihood of `end` behind `begin`, and whether it is likeliest."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(begin + end)["input_ids"]])
    first = len(tokenizer(begin)["input_ids"])
    with torch.inference_mode():
        logprobs = model(ids).logits[0].log_softmax(-1)[first - 1 : -1]
    chosen = ids[0, first:]
    score = logprobs.gather(1, chosen[:, None]).sum().item()
    return score, bool((logprobs.argmax(-1) == chosen).all())


def test_guidellm_measures_it(clients: Clients, tiny: Server, tmp_path: Path) -> None:
    command = [
        clients.bin / "guidellm", "run", "--backend",
        f"kind=openai_http,target={tiny.url},model=tiny", "--tokenizer",
        f"kind=hf_auto,model={TINY}", "--profile", "kind=concurrent,streams=4", "--constraint",
        "kind=max_requests,count=12", "--data",
        "kind=synthetic_text,prompt_tokens=32,output_tokens=16", "--output",
        f"kind=json,path={tmp_path / 'out.json'}", "--disable-console",
    ]  # fmt: skip
    done = clients.run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (12, 0, 0)
    for request in found["requests"]["successful"]:
        assert request["output_tokens"] == 16
        assert request["time_to_first_token_ms"] > 0


PAIRS_OF_RUNS, ANSWERS, PROMPT, NEW = 10, 10, 128, 16
RATES = ("requests_per_s", "output_tokens_per_s")


def test_guidellm_and_kvrt_bench_serve_agree_within_5_percent(
    clients: Clients, busy: tuple[Server, Path], tmp_path: Path
) -> None:
    """On the time to a first token and on throughput, by turns; each reads the other's file as its
    own.

    One request at a time: with several, the time to a first token hangs on how requests happen to
    fall into step. No prompt begins as one of another run, of which the server would still have
    pages; and guidellm, which counts tokens, asks with as many as `kvrt bench serve` has, which
    only knows how many words make about as many.
    """
    first = by_kvrt(busy, tmp_path, PAIRS_OF_RUNS)
    long = round(statistics.mean(each.prompt_tokens or 0 for each in first.good))
    found: dict[str, list[Run]] = {"ours": [], "theirs": []}
    for pair in range(PAIRS_OF_RUNS):
        for who in sorted(found, reverse=bool(pair % 2)):
            run = (
                by_kvrt(busy, tmp_path, pair)
                if who == "ours"
                else by_guidellm(clients, busy, tmp_path, pair, long)
            )
            found[who].append(run)
    ratios = {"ttft_p50": typical(found["ours"]) / typical(found["theirs"])}
    for name in RATES:
        each = [[value(run, Figure.read(name)) or 0.0 for run in runs] for runs in found.values()]
        ratios[name] = statistics.median(here / there for here, there in zip(*each, strict=True))
    print(json.dumps({"prompt": long, "ours over guidellm's": ratios}, indent=1))
    for name, ratio in ratios.items():
        assert abs(ratio - 1) <= 0.05, name


def typical(runs: list[Run]) -> float:
    """Seconds to a first token: the median of all answers."""
    return statistics.median(each.ttft or 0.0 for run in runs for each in run.good)


def by_guidellm(
    clients: Clients, busy: tuple[Server, Path], folder: Path, pair: int, prompt: int
) -> Run:
    server, model = busy
    path = folder / f"guidellm-{pair}.json"
    command = [
        clients.bin / "guidellm", "run", "--backend",
        f"kind=openai_http,target={server.url},model={model.name},request_format=/v1/completions",
        "--tokenizer", f"kind=hf_auto,model={model}",
        "--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={ANSWERS}",
        "--data", f"kind=synthetic_text,prompt_tokens={prompt},output_tokens={NEW}",
        "--seed", f"kind=static,value={pair}",
        "--output", f"kind=json,path={path}", "--disable-console",
    ]  # fmt: skip
    done = clients.run(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(path)


def by_kvrt(busy: tuple[Server, Path], folder: Path, seed: int) -> Run:
    server, _ = busy
    path = folder / f"kvrt-{seed}.json"
    command = [
        sys.executable, "-m", "kvrt_cli", "bench", "serve", "--url", server.url, "--clients", "1",
        "--requests", str(ANSWERS), "-p", str(PROMPT), "-n", str(NEW), "--seed", str(seed),
        "-o", path, "-q",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(path)


def read(path: Path) -> Run:
    (run,) = read_runs(path)
    assert len(run.good) == ANSWERS
    return run


def test_aiperf_measures_it(clients: Clients, tiny: Server, tmp_path: Path) -> None:
    command = [
        clients.bin / "aiperf", "profile", "--model", "tiny", "--url", tiny.url,
        "--endpoint-type", "chat", "--streaming", "--tokenizer", TINY, "--request-count", "24",
        "--concurrency", "8", "--synthetic-input-tokens-mean", "32", "--output-tokens-mean", "16",
        "--extra-inputs", "ignore_eos:true", "--random-seed", "3", "--artifact-dir",
        tmp_path / "out", "--ui", "none",
    ]  # fmt: skip
    # It takes a folder for a name on the hub, once it is told not to ask there.
    done = clients.run(command, tmp_path, {"HF_HUB_OFFLINE": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    found: Any = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert found["completed_request_count"]["avg"] == 24
    assert found["request_error_rate"]["avg"] == 0
    assert found["total_usage_completion_tokens"]["avg"] == 24 * 16
    assert found["time_to_first_token"]["avg"] > 0
