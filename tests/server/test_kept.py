"""Who asks the very same again is told the same, and nobody else is."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Result, Timings, Usage
from kvrt.sampling import SamplingParams
from kvrt.server.access.keys import add_key
from kvrt.server.asking import Ask
from kvrt.server.kept.exact import KeptAnswers
from kvrt.server.kept.source import Selection, Source

from .clients import ROUTES, asked
from .conftest import PROMPT, Server, started

PARAMS = SamplingParams(max_tokens=8)
ME = Source("me", "alice", "/v1/chat/completions", 10.0)
OTHERS: dict[str, Any] = {
    "max_tokens": 9, "min_tokens": 1, "temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1,
    "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "logit_bias": {5: 1.0}, "bad_words": ("a",), "seed": 3, "stop": ("a",), "stop_token_ids": (5,),
    "ignore_eos": True, "skip_special_tokens": False, "logprobs": 1, "prompt_logprobs": 1, "n": 2,
    "speculate": 2, "beam_width": 2, "length_penalty": 2.0,
}  # fmt: skip
"""Of each parameter, another value."""


def key(ask: Ask, owner: str = "me", wanted: tuple[str, ...] = ("on",)) -> bytes | None:
    return KeptAnswers(1 << 20, always=False).key([ask], owner, wanted)


def result(text: str, reason: Any = "stop", tokens: int = 8) -> Result:
    said = Completion(0, text, tuple(range(tokens)), reason)
    return Result("r", (1, 2), (said,), Usage(2, tokens), Timings(0.0, 0.1, 0.2))


def test_whatever_differs_is_another_question() -> None:
    chat = [{"role": "user", "content": "a"}]
    prompts: list[Any] = ["a", "b", [5], [5, 6], Chat(chat), Chat(chat, variables={"x": 1}),
                          Chat(chat, continue_final_message=True)]  # fmt: skip
    asks = [Ask(prompt, replace(PARAMS, seed=1)) for prompt in prompts]
    known = {each.name for each in fields(SamplingParams)} - {"constraint"}
    assert set(OTHERS) == known, "each parameter is tried"
    for name, value in OTHERS.items():
        if name in ("beam_width", "length_penalty"):  # beams draw nothing
            asks.append(Ask("a", replace(PARAMS, **{name: value})))
        else:
            asks.append(Ask("a", replace(PARAMS, **{"seed": 1, name: value})))
    keys = [key(ask) for ask in asks] + [key(asks[0], "you")]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert key(asks[0]) == key(Ask("a", replace(PARAMS, seed=1)))


def test_only_what_would_be_said_again_is_kept_and_only_where_it_is_wanted() -> None:
    drawn, seeded = (SamplingParams(temperature=1.0, seed=seed) for seed in (None, 3))
    assert key(Ask("a", drawn)) is None
    assert key(Ask("a", seeded)) is not None
    for always, wanted, kept in (
        (False, (), False), (False, ("on",), True), (False, ("ON",), True), (False, ("x",), False),
        (True, (), True), (True, ("off",), False),
    ):  # fmt: skip
        found = KeptAnswers(1 << 20, always=always).key([Ask("a", PARAMS)], "me", wanted)
        assert (found is not None) == kept, (always, wanted)
    assert KeptAnswers(1 << 20, always=True).key([], "me", ()) is None


def test_the_oldest_make_room_and_what_was_cut_off_is_not_kept() -> None:
    kept = KeptAnswers(10_000, always=True)
    for number in range(100):
        kept.keep(bytes([number]), ME, [result(f"{number}")])
        assert kept.nbytes <= 10_000
        assert kept.find(b"\x00") is not None, "it is wanted again and again"
    assert kept.find(bytes([99])) is not None
    assert kept.find(bytes([50])) is None
    for reason in ("abort", "error", "capacity"):
        kept.keep(b"cut", ME, [result("a", reason)])
    kept.keep(b"long", ME, [result("a", tokens=1000)])
    assert kept.find(b"cut") is kept.find(b"long") is None
    assert (kept.hits, kept.misses) == (101, 3)


def test_answers_are_forgotten_by_whose_key_has_asked_by_what_route_and_when() -> None:
    kept = KeptAnswers(1 << 20, always=True)
    sources = [
        Source(tenant, key, route, at)
        for tenant in "ab" for key in "kl" for route in ("/x", "/y") for at in (10.0, 20.0)
    ]  # fmt: skip
    for number, source in enumerate(sources):
        kept.keep(bytes([number]), source, [result("yes")])
    left = len(sources)
    for selection, count in (
        (Selection("c"), 0), (Selection("a", key="m"), 0), (Selection("a", before=10.0), 0),
        (Selection("a", key="k", route="/x", before=20.0), 1), (Selection("a", route="/x"), 3),
        (Selection("a", key="l"), 2), (Selection("a"), 2), (Selection("b", before=15.0), 4),
    ):  # fmt: skip
        assert kept.forget(selection) == count, selection
        left -= count
        assert len(kept._all) == left
    assert kept.forget(Selection("b")) == left
    assert kept.nbytes == 0


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("kept")
    path = folder / "keys"
    keys = {name: add_key(path, name, "admin") for name in ("alice", "bob")}
    options = ["--keys", str(path), "--response-cache", "1MiB", "--response-cache-all"]
    with started(folder, *options) as server:
        yield server, keys


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_the_same_is_said_by_every_route_and_nothing_computed(
    keyed: Any, route: str, stream: bool
) -> None:
    server, keys = keyed
    server.headers = {"Authorization": f"Bearer {keys['alice']}"}
    body = asked(route, PROMPT, 12, stream=stream)
    body.get("options", body)["temperature"] = 0

    def ask(**headers: str) -> tuple[str | None, str]:
        status, found, answer = server.ask("POST", route, body, headers)
        assert status == 200
        return found.get("x-kvrt-cache"), text_of(answer)

    before = server.metrics()["kvrt_computed_tokens_total"]
    said = ask(**{"x-kvrt-cache": "off"})
    assert said[0] is None
    computed = server.metrics()["kvrt_computed_tokens_total"]
    assert computed > before
    first, second = ask(), ask()
    assert second == ("hit", said[1])
    assert first[1] == said[1]
    assert first[0] in ("hit", "miss"), "a stream and a whole answer are the same"
    done = server.metrics()["kvrt_computed_tokens_total"]
    assert ask() == ("hit", said[1])
    assert server.metrics()["kvrt_computed_tokens_total"] == done
    assert ask(Authorization=f"Bearer {keys['bob']}")[0] == first[0], "bob's are bob's"


def text_of(answer: bytes) -> str:
    """What an answer says, without when it was and its ids."""
    found = re.findall(rb'"(?:text|content|response|delta)":"((?:[^"\\]|\\.)*)"', answer)
    return "".join(json.loads(b'"' + piece + b'"') for piece in found)
