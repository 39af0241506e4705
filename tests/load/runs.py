"""Runs of which every time is known."""

import random
from dataclasses import replace
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
