"""`kvrt tune`."""

import json
from collections.abc import Callable

import pytest
from kvrt_cli.tuning.trials import Run

from kvrt.profiling.slo import objectives

from .conftest import DUMMY, Kvrt, Screen

SMALL = (*DUMMY, "-p", "20", "-n", "4", "-b", "2", "--memory-limit", "256MiB")


def test_it_says_what_it_would_set_and_what_it_tried(kvrt: Kvrt, plain_model: str) -> None:
    options = ("--knobs", "page-size", "--runs", "25", "--json", "--quiet")
    result = kvrt("tune", plain_model, *SMALL, *options, "--slo", "e2e_p99=600s")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["goal"], found["grid"], found["ended"]) == ("throughput", 4, "done")
    assert 0 < found["runs"] <= 25
    tried = {each["value"] for each in found["tried"]}
    assert {8, 32, 64} <= tried <= {8, 16, 32, 64}, "the usual one again, if another seemed better"
    assert found["keeps_slo"] is True
    assert found["tokens_per_s"] > 0
    expected = f"--page-size {found['set']['page_size']}" if found["set"] else ""
    assert found["flags"] == expected
    assert (found["verdict"] == "default") == (not found["set"])
    assert found["bottleneck"]["fix"]


def test_formats_of_fewer_bits_are_tried_only_where_answers_may_differ(
    kvrt: Kvrt, plain_model: str
) -> None:
    options = ("--knobs", "kv-cache-dtype", "--runs", "14", "--json", "--quiet")
    refused = kvrt("tune", plain_model, *SMALL, *options)
    assert refused.exit_code == 2
    assert "kv-cache-dtype --allow-inexact" in refused.stderr
    result = kvrt("tune", plain_model, *SMALL, *options, "--allow-inexact")
    assert result.exit_code == 0, result.stderr
    assert {each["value"] for each in json.loads(result.stdout)["tried"]} == {"int8", "int4"}


def test_ctrl_c_prints_the_best_so_far(
    at_terminal: Callable[..., Screen], plain_model: str
) -> None:
    screen = at_terminal("tune", plain_model, *SMALL, "--runs", "100000", "--knobs", "page-size")
    screen.wait_for("page_size 8")
    screen.type("\x03")
    screen.wait_for("interrupted: this is the best so far")
    screen.wait_for("tokens/s")
    assert screen.exit_code() == 130


def test_a_run_that_misses_an_objective_is_worth_less_the_more_it_misses() -> None:
    run = Run(100.0, {"ttft": [0.1, 0.2], "tpot": [], "e2e": [2.0, 4.0]})
    assert run.score("throughput", ()) == 100.0
    assert run.score("ttft", ()) == pytest.approx(1 / 0.15)
    assert run.score("latency", ()) == pytest.approx(1 / 3.0)
    assert run.score("throughput", objectives("ttft_p99=0.2s")) == 100.0
    assert run.score("throughput", objectives("ttft_p99=0.1s,e2e_p50=4s")) == 100.0 / 2**4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slo", "fast"), "ttft_p95=300ms"),
        (("--knobs", "x"), "'x' is not one of threads"),
        (("--knobs", "speculate"), "speculate needs PROMPTS"),
    ],
)
def test_searches_that_make_no_sense_are_refused(
    kvrt: Kvrt, plain_model: str, options: tuple[str, ...], said: str
) -> None:
    result = kvrt("tune", plain_model, *SMALL, *options)
    assert result.exit_code == 2
    assert said in result.stderr
