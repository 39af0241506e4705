"""What errors carry."""

import inspect
import pickle
from collections.abc import Iterator

import pytest

from kvrt import errors
from kvrt.errors import KvrtError


def kinds(of: type[KvrtError] = KvrtError) -> Iterator[type[KvrtError]]:
    yield of
    for kind in of.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


def made(kind: type[KvrtError]) -> KvrtError:
    """One with something in each of its fields."""
    fields = {
        name: 7 if parameter.annotation is int else f"its {name}"
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return kind("what is wrong", **fields)


@pytest.mark.parametrize("kind", [*kinds()])
def test_an_error_goes_to_another_process_with_all_that_it_says(kind: type[KvrtError]) -> None:
    error = made(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    assert copy.fix == "its fix"
