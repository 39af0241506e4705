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


def test_most_time_before_first_tokens_is_prompts_unless_products_explain_it() -> None:
    found = [record(number, 1.0, 0.001) for number in range(20)]
    assert named(records=found, seconds=3.0) == ["prompts"]
    takes = {"prompt_token_operations": 1e9, "answer_token_operations": 2e9}
    # 20 prompts of 34 computed tokens, and as many answers of 20: 1.48 Tflop in 3 s.
    target = {"kind": "inside", **takes, "operations_per_s": 1e12}
    assert named(records=found, seconds=3.0, target=target) == ["arithmetic"]
    (told,) = advice(run(1, records=found, seconds=3.0, target=target))
    assert "at 49% of the 1000 GFLOP/s" in told.told
    target = {"kind": "inside", **takes, "operations_per_s": 1e13}
    assert named(records=found, seconds=3.0, target=target) == ["prompts"]


def test_what_a_server_knows_nothing_of_is_the_network() -> None:
    found = [record(number, 0.1, 0.01) for number in range(20)]
    clocks = {"first_mean": 0.05, "queued_mean": 0.01}
    assert named(records=found, clocks=clocks) == ["network", "steps"]
    (told, _) = advice(run(1, records=found, clocks=clocks))
    assert "the server knows of 50.00: the other 50%" in told.told
    assert named(records=found, clocks={**clocks, "first_mean": 0.09}) == ["steps"]


def test_a_far_server_that_does_not_tell_its_times_is_known_by_a_round_trip() -> None:
    found = [record(number, 0.1, 0.01) for number in range(20)]
    assert named(records=found, target={"round_trip_s": 0.06}) == ["network", "steps"]
    assert named(records=found, target={"round_trip_s": 0.001}) == ["steps"]
    assert named(records=found, target={"round_trip_s": None}) == ["steps"]


def test_waiting_in_the_server_is_a_queue_also_where_clients_take_turns() -> None:
    found = [record(number, 1.0, 0.001) for number in range(20)]
    waits = {"first_mean": 0.99, "queued_mean": 0.8}
    assert named(records=found, clocks=waits, seconds=3.0) == ["queue", "prompts"]
    assert named(records=found, clocks={**waits, "queued_mean": 0.1}, seconds=3.0) == ["prompts"]


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
