"""Objectives are read from text, and compared with percentiles."""

import pytest

from kvrt.errors import ConfigError
from kvrt.profiling.slo import Objective, objectives


def test_several_are_read_in_their_units() -> None:
    assert objectives("ttft_p95=300ms, e2e_p50=1.5s") == (
        Objective("ttft", 95, 0.3),
        Objective("e2e", 50, 1.5),
    )


@pytest.mark.parametrize(
    "text", ["", "ttft=3s", "ttft_p0=3s", "ttft_p100=3s", "ttft_p95=0ms", "x_p5=1s", "ttft_p95<1s"]
)
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="slo: ") as refused:
        objectives(text)
    assert "ttft_p95=300ms" in refused.value.fix


def test_the_percentile_is_a_request_that_there_was() -> None:
    times = {"ttft": [0.1, 0.2, 0.3, 0.4], "tpot": []}
    assert Objective("ttft", 50, 0.1).excess(times) == pytest.approx(2.0)
    assert Objective("ttft", 99, 0.8).excess(times) == pytest.approx(0.5)
    assert Objective("tpot", 50, 0.1).excess(times) == 0.0
