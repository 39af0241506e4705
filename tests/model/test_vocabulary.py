"""A tokenizer's tokens are what the library says they are, and nobody waits while they are read."""

import threading

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from kvrt.model.tokens.vocabulary import read_vocabulary

TOKENS = st.text("abc<>é", min_size=1, max_size=3)


@given(
    st.dictionaries(TOKENS, st.integers(0, 30), max_size=20) | st.just({"a": 0, "b": 1, "c": 2}),
    st.lists(st.tuples(TOKENS, st.booleans()), max_size=5),
)
def test_it_is_what_the_library_says_with_gaps_and_ids_that_stand_for_two(
    vocab: dict[str, int], added: list[tuple[str, bool]]
) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="a"))
    for text, special in added:
        tokenizer.add_tokens([tokenizers.AddedToken(text, special=special)])
    assert read_vocabulary(tokenizer) == tokenizer.get_vocab(with_added_tokens=True)


def test_other_threads_have_their_turns_meanwhile() -> None:
    size = 300_000
    tokenizer = tokenizers.Tokenizer(models.WordLevel({f"w{n}": n for n in range(size)}, "w0"))
    turns = 0
    began, over = threading.Event(), threading.Event()

    def count() -> None:
        nonlocal turns
        began.set()
        while not over.wait(0.001):
            turns += 1

    other = threading.Thread(target=count)
    other.start()
    began.wait()
    before = turns
    assert len(read_vocabulary(tokenizer)) == size
    taken = turns - before
    over.set()
    other.join()
    assert taken >= 3
