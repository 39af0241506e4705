"""Sizes in bytes, and times, as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.errors import ConfigError
from kvrt.units import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1234", 1234),
        ("12b", 12),
        ("1.5GiB", 3 << 29),
        ("2.5 MB", 2_500_000),
        (" 4 gib ", 4 << 30),
        ("3k", 3000),
        ("0.25TiB", 1 << 38),
        ("50%", 500),
        ("100%", 1000),
        ("0.1 %", 1),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, nbytes: int) -> None:
    assert parse_bytes(text, whole=1000) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "4 XiB", "-1", "1e9", "1,5GiB", "0%", "101%", "nan%", "inf%", "%", "9" * 31],
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a"):
        parse_bytes(text, whole=1000)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes("50%")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (248 << 20, "248 MiB"),
        (1000 << 10, "1000 KiB"),
        ((1023 << 20) + 1, "1023 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (2000 << 40, "2000 TiB"),
        (-(1 << 30), "-1 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_leaves_one(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@given(st.integers(0, 1023), st.integers(0, 49))
def test_a_size_that_is_shown_is_near_what_is_read_back(mantissa: int, shift: int) -> None:
    nbytes = mantissa << shift
    assert parse_bytes(format_bytes(nbytes)) == pytest.approx(nbytes, rel=0.005)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("1h30m", 5400),
     ("1.5h", 5400), ("2d", 172_800), ("-1", -1), ("-5m", -300), (" 30s ", 30), ("1m0.5s", 60.5)],
)  # fmt: skip
def test_a_time_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "5 m", "m", "1e9", "inf", "5m3", "--1", "5mm", "٣s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a time"):
        parse_seconds(text)
