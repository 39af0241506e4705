"""How values of files are quoted."""

import pytest

from kvrt.model.files.jsonfile import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 58, repr("x" * 58)),
        ("x" * 59, "'" + "x" * 56 + "..."),
        ("a\nb", "'a\\nb'"),
        ([0] * 1000, str([0] * 20)[:57] + "..."),
    ],
)
def test_a_value_in_an_error_is_short_and_on_one_line(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(text) <= 60
