"""Runs of which every time is known."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvrt.bench.words import Counter, Held, Record, Run

TOKENS = 20


def record(number: int, ttft: float, gap: float, **fields: Any) -> Record:
    pieces = tuple(ttft + gap * each for each in range(TOKENS))
    sent = 0.1 * number
    usual = {"prompt_tokens": 50, "cached_tokens": 16, "output_tokens": TOKENS, "finish": "length"}
    return Record(
        talk=number, turn=0, due=sent, sent=sent, end=sent + pieces[-1], pieces=pieces,
        **{**usual, **fields},
    )  # fmt: skip


def run(seed: int = 1, *, slower: float = 1.0, count: int = 200, **fields: Any) -> Run:
    """Times are lognormal around 50 ms and 10 ms, times `slower`."""
    rng = random.Random(seed)
    records = [
        record(
            number,
            0.05 * rng.lognormvariate(0, 0.3) * slower,
            0.01 * rng.lognormvariate(0, 0.1) * slower,
        )
        for number in range(count)
    ]
    usual = Run(
        name=f"run {seed}", made_by="kvrt", date="2026-11-27T00:00:00Z",
        target={"kind": "http", "model": "m"}, machine={}, load={"loop": "open"}, data={},
        seconds=max(each.end for each in records), cut=False, records=records,
        held=[Held(0.0, 1 << 20, 1 << 20, 4 << 20, 8 << 20)],
        energy=[Counter("processors (RAPL)", None, "there is no counter")],
    )  # fmt: skip
    return replace(usual, **fields)


def as_guidellm(run: Run, path: Path) -> Path:
    """The file that guidellm writes of the same requests."""
    requests = [
        {
            "request_start_time": 1e9 + each.sent,
            "request_end_time": 1e9 + each.end,
            "time_to_first_token_ms": 1000 * (each.ttft or 0),
            "inter_token_latency_ms": 1000 * (each.tpot or 0),
            "prompt_tokens": each.prompt_tokens,
            "output_tokens": each.output_tokens,
        }
        for each in run.records
    ]
    body = {"requests": {"successful": requests, "errored": [], "incomplete": []}}
    path.write_text(json.dumps({"benchmarks": [body]}))
    return path


def as_aiperf(run: Run, folder: Path) -> Path:
    """The folder that aiperf writes of the same requests."""
    lines = [
        {
            "metadata": {
                "request_start_ns": round(1e18 + 1e9 * each.sent),
                "request_end_ns": round(1e18 + 1e9 * each.end),
                "benchmark_phase": "profiling",
            },
            "metrics": {
                "time_to_first_token": {"value": 1000 * (each.ttft or 0), "unit": "ms"},
                "inter_token_latency": {"value": 1000 * (each.tpot or 0), "unit": "ms"},
                "output_sequence_length": {"value": each.tokens, "unit": "tokens"},
                "input_sequence_length": {"value": each.prompt_tokens, "unit": "tokens"},
            },
        }
        for each in run.records
    ]
    folder.mkdir()
    text = "".join(json.dumps(each) + "\n" for each in lines)
    (folder / "profile_export.jsonl").write_text(text)
    return folder
