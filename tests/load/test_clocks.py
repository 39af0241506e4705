"""What servers tell of their own times is read as they write it."""

from kvrt.bench.clocks import Clocks, of_run, read_clocks

KVRT = """# HELP kvrt_queue_seconds From submission to the first step.
# TYPE kvrt_queue_seconds histogram
kvrt_queue_seconds_bucket{le="0.001",model="a"} 1.0
kvrt_queue_seconds_count{model="a"} 3.0
kvrt_queue_seconds_sum{model="a"} 0.5
kvrt_queue_seconds_sum{model="b}"} 0.25
kvrt_time_to_first_token_seconds_count{model="a"} 3.0
kvrt_time_to_first_token_seconds_count{model="b}"} 1.0
kvrt_time_to_first_token_seconds_sum{model="a"} 1.5
kvrt_time_to_first_token_seconds_sum{model="b}"} 1e-1
kvrt_time_to_first_token_seconds_created{model="a"} 1.7e+09
"""
VLLM = """vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 2.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 5.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} 1.0
"""


def test_all_models_of_a_server_count_together() -> None:
    assert read_clocks(KVRT) == Clocks(4, 1.6, 0.75)
    assert read_clocks(VLLM) == Clocks(5, 2.5, 1.0)
    assert read_clocks("process_cpu_seconds_total 1.0\n") is None


def test_a_run_that_was_not_alone_says_so_in_place_of_its_times() -> None:
    before, after = Clocks(4, 1.0, 0.5), Clocks(6, 2.0, 0.75)
    assert of_run(before, after, 2) == {"first_mean": 0.5, "queued_mean": 0.125}
    assert "3 of the server" in of_run(before, Clocks(7, 2.0, 0.75), 2)["why"]
    assert "why" in of_run(before, before, 0)
