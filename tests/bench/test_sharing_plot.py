"""The picture of the rates at which sharing was measured."""

from pathlib import Path

import pytest

from tests.bench.sharing.plot import Ratio, drawn, ratios_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_on_the_page_is_that_of_its_table() -> None:
    page = (DOCS / "sharing.md").read_text()
    assert drawn(ratios_of(page)) == (DOCS / "sharing-rates.svg").read_text()


def test_a_higher_ratio_is_drawn_higher_and_what_is_beyond_the_ends_at_them() -> None:
    picture = drawn([Ratio(1, 1.0, 0.1), Ratio(10, 2.0, 100.0)])
    mean, p99 = (
        [float(pair.partition(",")[2]) for pair in line.split('"')[1].split()]
        for line in picture.splitlines()
        if line.startswith("<polyline")
    )
    assert mean[1] < mean[0]
    assert (p99[0], p99[1]) == (256.0, 36.0)


def test_a_page_without_a_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="no table"):
        ratios_of("# One device\n")
