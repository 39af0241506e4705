"""What holds a run back is named by what was measured."""

from dataclasses import replace

from kvrt.bench.advice import advice
from kvrt.bench.words import Held

from .runs import record, run


def named(**fields: object) -> list[str]:
    return [each.bottleneck for each in advice(run(1, **fields))]  # type: ignore[arg-type]


def test_most_time_between_tokens_is_steps_unless_reading_weights_explains_it() -> None:
    assert named() == ["steps"]
    reads = {"kind": "inside", "weight_bytes": 100_000_000}
    # 100 MB in about 10 ms are 10 GB/s.
    assert named(target={**reads, "read_bytes_per_s": 12e9}) == ["bandwidth"]
    assert named(target={**reads, "read_bytes_per_s": 40e9}) == ["steps"]
    (told,) = advice(run(1, target={**reads, "read_bytes_per_s": 12e9}))
    assert "of the 12.0 GB/s" in told.told


def test_most_time_before_first_tokens_is_prompts() -> None:
    found = [record(number, 1.0, 0.001) for number in range(20)]
    assert named(records=found, seconds=3.0) == ["prompts"]


def test_memory_that_is_full_of_requests_is_memory() -> None:
    full = [Held(0.0, pinned=95, cached=0, held=100, limit=100)]
    assert named(held=full) == ["memory", "steps"]
    cached = [Held(0.0, pinned=5, cached=95, held=100, limit=100)]
    assert named(held=cached) == ["steps"], "what is only cached is in nobody's way"


def test_a_rate_that_is_not_kept_up_is_a_queue() -> None:
    load = {"loop": "open", "rate": 10.0}
    waits = [record(number, 0.05 + 0.1 * number, 0.001) for number in range(60)]
    end = max(each.end for each in waits)
    assert "queue" in named(records=waits, seconds=end, load=load)
    kept = [record(number, 0.05, 0.001) for number in range(60)]
    assert "queue" not in named(records=kept, seconds=6.0, load=load)


def test_requests_that_are_sent_late_are_the_clients_fault() -> None:
    late = [replace(each, due=each.sent - 0.2) for each in run(1).records]
    assert named(records=late, load={"loop": "open"}) == ["client", "steps"]
    assert named(records=late, load={"loop": "closed"}) == ["steps"]
