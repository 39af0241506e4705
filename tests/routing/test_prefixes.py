"""What a router knows of a server's pages, held against plain lists."""

import random

from kvrt.integrations.events.wire import AllBlocksCleared, BlockRemoved, BlockStored
from kvrt.integrations.prefixes import Prefixes, keys_of

PAGE = 4
FOREVER = 1e9


def stored(names: list[int], parent: int | None, tokens: list[int]) -> BlockStored:
    return BlockStored(names, parent, tokens, PAGE, None, "GPU", None)


def test_pages_are_known_from_when_they_are_told_until_they_go() -> None:
    prefixes, prompt = Prefixes(), list(range(13))
    keys = keys_of(prompt, PAGE)
    assert len(keys) == 3
    assert prefixes.matched(keys, 0) == 0
    prefixes.hear([stored([7], None, prompt[:4])])
    prefixes.hear([stored([8, 9], 7, prompt[4:12])])
    assert prefixes.page_size == PAGE
    assert prefixes.matched(keys, FOREVER) == 3
    prefixes.hear([BlockRemoved([8], "GPU")])
    assert prefixes.matched(keys, FOREVER) == 1, "what comes behind a page that is gone is no use"
    prefixes.hear([AllBlocksCleared()])
    assert prefixes.matched(keys, FOREVER) == 0
    assert prefixes.pages == 0


def test_equal_pages_behind_other_ones_are_others() -> None:
    prefixes = Prefixes()
    prefixes.hear([stored([1, 2], None, [1, 2, 3, 4, 5, 6, 7, 8])])
    assert prefixes.matched(keys_of([5, 6, 7, 8], PAGE), 0) == 0
    assert prefixes.matched(keys_of([0, 0, 0, 0, 5, 6, 7, 8], PAGE), 0) == 0


def test_pages_whose_beginning_was_missed_are_not_believed_in() -> None:
    prefixes = Prefixes()
    prefixes.hear([stored([2], 1, [5, 6, 7, 8])])
    assert prefixes.pages == 0


def test_what_a_server_was_asked_is_likely_there_for_a_while_and_for_those_who_share_it() -> None:
    prefixes = Prefixes(seconds=60)
    keys = keys_of(list(range(12)), PAGE, b"somebody")
    prefixes.asked(keys, now=100.0)
    assert prefixes.matched(keys, 159.0) == 3
    assert prefixes.matched(keys_of(list(range(12)), PAGE), 159.0) == 0
    assert prefixes.matched(keys, 161.0) == 0


def test_what_is_likely_takes_bounded_memory() -> None:
    prefixes = Prefixes(most=10)
    keys = keys_of(list(range(4 * 25)), PAGE)
    prefixes.asked(keys, now=0.0)
    assert prefixes.matched(keys, 1.0) == 0, "the oldest went first"
    assert prefixes.matched(keys[15:], 1.0) == 10


def test_a_page_that_has_gone_is_not_likely_either() -> None:
    prefixes = Prefixes()
    keys = keys_of([1, 2, 3, 4], PAGE)
    prefixes.asked(keys, now=0.0)
    prefixes.hear([stored([5], None, [1, 2, 3, 4]), BlockRemoved([5], "GPU")])
    assert prefixes.matched(keys, 1.0) == 0


def test_whatever_is_told_in_whatever_order_equals_plain_lists() -> None:
    rng = random.Random(3)
    for _ in range(200):
        prefixes = Prefixes()
        there: dict[int, tuple[int, ...]] = {}  # by name, all tokens up to its end
        for name in range(1, 40):
            if there and rng.random() < 0.3:
                gone = rng.choice(list(there))
                del there[gone]
                prefixes.hear([BlockRemoved([gone], "GPU")])
                continue
            parent = rng.choice([None, *there])
            before = () if parent is None else there[parent]
            tokens = tuple(rng.randint(0, 1) for _ in range(PAGE))
            there[name] = before + tokens
            prefixes.hear([stored([name], parent, list(tokens))])
        for _ in range(10):
            prompt = [rng.randint(0, 1) for _ in range(rng.randint(0, 20))]
            want = 0
            while tuple(prompt[: (want + 1) * PAGE]) in there.values() and (
                (want + 1) * PAGE <= len(prompt)
            ):
                want += 1
            assert prefixes.matched(keys_of(prompt, PAGE), 0) == want
