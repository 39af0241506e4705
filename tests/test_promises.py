"""The page of promises says what the tests say."""

from tests.promises import PAGE, PROMISES, keepers, page


def test_every_promise_has_a_test_and_every_mark_a_promise() -> None:
    assert set(keepers()) == set(PROMISES)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.promises"
