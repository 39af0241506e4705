"""What a step costs to be recorded, and what it costs not to be.

A step of 16 sequences has ten phases, and makes text of 16 tokens. One of the bundled model, which
is tiny, takes more than a millisecond.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.engine.spans import Spans

TURNS = ("fetch", "plan", "map", "run", "index", "sample", "wait", "map", "answer", "unmap")
TOKENS = 16


@pytest.mark.parametrize("wanted", [False, True], ids=["off", "on"])
def test_the_phases_of_a_step(benchmark: BenchmarkFixture, wanted: bool) -> None:
    spans = Spans()

    def step() -> None:
        spans.begin(wanted=wanted)
        for name in TURNS:
            spans.turn(name)
            if name == "answer":
                for _ in range(TOKENS):
                    spans.enter("detokenise")
                    spans.leave()
        if spans.on:
            spans.told(1, (TOKENS, 0))

    benchmark(step)
