"""Who asks nearly the same, and says that this will do, is told what was answered; nobody else."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt import Embedder
from kvrt.model.chat.templates import Chat
from kvrt.outputs import Completion, Result, Timings, Usage
from kvrt.sampling import SamplingParams
from kvrt.server.access.keys import add_key
from kvrt.server.asking import Ask, AskedAdapter
from kvrt.server.kept import similar as module
from kvrt.server.kept.similar import Question, SimilarAnswers
from kvrt.server.kept.source import Selection, Source
from tests.embedding.encoders import make_encoder

from .conftest import Server, started
from .test_kept import OTHERS

CHAT = "/v1/chat/completions"
ME = Source("me")
ASKED, NEAR, FAR = "w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w7", "w40"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("similar") / "encoder"
    make_encoder("bert", folder)
    return folder


@pytest.fixture(scope="module")
def embedder(encoder: Path) -> Iterator[Embedder]:
    with Embedder(encoder, backend="cpu") as one:
        yield one


@pytest.fixture(scope="module")
def between(embedder: Embedder) -> float:
    """Nearer than what is far, and not as near as what is near."""
    vectors = embedder.embed([ASKED, NEAR, FAR]).vectors
    asked, near, far = (vector / np.linalg.norm(vector) for vector in vectors)
    assert asked @ near > asked @ far
    return float(asked @ near + asked @ far) / 2


@dataclass
class Clock:
    """Goes when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def chat(text: str = ASKED, *before: str, **options: Any) -> Chat:
    return Chat([*({"role": "user", "content": each} for each in before),
                 {"role": "user", "content": text}], **options)  # fmt: skip


def result(text: str = "yes", reason: Any = "stop") -> Result:
    said = Completion(0, text, (1, 2, 3), reason)
    return Result("r", (1, 2), (said,), Usage(2, 3), Timings(0.0, 0.1, 0.2))


def kept(embedder: Embedder, near: float = 0.9, most: int = 1 << 20) -> SimilarAnswers:
    return SimilarAnswers(embedder, near, most, 60.0, Clock())


def test_nothing_but_the_last_words_may_differ(embedder: Embedder) -> None:
    answers, params = kept(embedder), SamplingParams(max_tokens=8, seed=1)
    plain = Ask(chat(), params)

    def place(ask: Ask, model: str = "m", tenant: str = "me") -> bytes:
        question = answers.question([ask], model, tenant)
        assert question is not None
        return question.place

    assert place(replace(plain, prompt=chat(FAR))) == place(plain)
    others = [
        place(plain, model="n"),
        place(plain, tenant="you"),
        place(replace(plain, adapter=AskedAdapter("law", 1))),
        place(replace(plain, prompt=chat(ASKED, "w9"))),
        place(replace(plain, prompt=chat(ASKED, "w8"))),
        place(replace(plain, prompt=chat(variables={"x": 1}))),
        place(replace(plain, prompt=Chat([{"role": "user", "name": "b", "content": ASKED}]))),
    ]
    untold = {"prompt_logprobs", "beam_width", "length_penalty"}
    known = {each.name for each in fields(SamplingParams)} - {"constraint"}
    assert known == OTHERS.keys()
    for name in known - untold:
        changed = replace(params, **{name: OTHERS[name]})
        others.append(place(replace(plain, params=changed)))
    assert place(plain) not in others
    assert len(set(others)) == len(others)


def test_what_tells_of_its_prompt_or_calls_tools_is_never_answered_so(embedder: Embedder) -> None:
    answers, params = kept(embedder), SamplingParams(max_tokens=8)
    tool = {"type": "function", "function": {"name": "f"}}
    said = {"role": "assistant", "content": "w1"}
    parts = {"role": "user", "content": [{"type": "text", "text": "w1"}]}
    prompts: list[Any] = [ASKED, [5, 6], chat(tools=[tool]), chat("  "), Chat([parts]),
                          Chat([{"role": "user", "content": "w1"}, said])]  # fmt: skip
    asks = [[Ask(prompt, params)] for prompt in prompts]
    asks += [[], [Ask(chat(), params)] * 2, [Ask(chat(), replace(params, prompt_logprobs=1))]]
    for each in asks:
        assert answers.question(each, "m", "me") is None


def vector(*numbers: float) -> Any:
    found = np.array(numbers, np.float32)
    return found / np.linalg.norm(found)


def test_the_nearest_is_told_if_it_is_near_enough_and_for_its_time(embedder: Embedder) -> None:
    clock = Clock()
    answers = SimilarAnswers(embedder, 0.9, 1 << 20, 60.0, clock)
    here, there = Question(b"here", ""), Question(b"there", "")
    for text, at in (("east", vector(1, 0)), ("north", vector(0, 1))):
        answers.keep(here, at, ME, [result(text)])
        clock.now += 10
    found = answers.find(here, vector(1, 0.2))
    assert found is not None
    assert (found[0][0].completions[0].text, round(found[1], 3)) == ("east", 0.981)
    assert answers.find(here, vector(1, 1)) is None
    assert answers.find(there, vector(1, 0)) is None
    clock.now = 60.0
    assert answers.find(here, vector(1, 0)) is None, "its time is over"
    assert answers.find(here, vector(0, 1)) is not None
    assert (answers.hits, answers.misses) == (2, 3)
    for reason in ("abort", "error", "capacity"):
        answers.keep(there, vector(1, 0), ME, [result(reason=reason)])
    assert answers.find(there, vector(1, 0)) is None


def test_answers_have_their_room_and_are_forgotten_by_workspace(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = kept(embedder, most=20_000)
    for number in range(100):
        at = vector(1, number)
        answers.keep(Question(b"%d" % (number % 3), ""), at, Source("ab"[number % 2]), [result()])
        assert answers.nbytes <= 20_000
    assert 10 < len(answers._all) < 100
    some = answers.forget(Selection("a"))
    assert some > 3
    assert {each.source.tenant for each in answers._all} == {"b"}
    assert answers.forget(Selection("a")) == 0
    assert some + 2 * answers.forget(Selection("b")) > len(answers._all) == answers.nbytes == 0
    assert not answers._places
    monkeypatch.setattr(module, "MOST_COMPARED", 5)
    for number in range(20):
        answers.keep(Question(b"one", ""), vector(1, number), Source("a"), [result()])
    assert len(answers._places[b"one"]) == 5


def test_a_server_tells_it_who_asks_for_it_and_says_so(
    encoder: Path, between: float, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    alice, anna = (add_key(path, name, workspace="acme") for name in ("alice", "anna"))
    bob, admin = add_key(path, "bob"), add_key(path, "boss", "admin")
    options = ["--keys", str(path), "--embed-model", str(encoder), "--semantic-cache",
               f"{between}"]  # fmt: skip

    def asked(
        server: Server, key: str, text: str, said: str | None = "similar", **more: Any
    ) -> Any:
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0, **more}
        headers = {"Authorization": f"Bearer {key}"}
        headers |= {} if said is None else {"x-kvrt-cache": said}
        status, found, data = server.ask("POST", CHAT, body, headers)
        assert status == 200, data
        return found.get("x-kvrt-cache"), float(found.get("x-kvrt-similarity", 0)), data

    with started(tmp_path, *options) as server:
        assert asked(server, alice, ASKED)[0] == "miss"
        how, nearness, _ = asked(server, anna, NEAR)
        assert (how, round(between, 6) <= nearness <= 1) == ("similar", True)
        streamed = asked(server, anna, NEAR, stream=True)
        assert streamed[0] == "similar"
        assert b"[DONE]" in streamed[2]
        assert asked(server, anna, ASKED)[:2] == ("similar", 1.0)
        assert asked(server, bob, NEAR)[0] == "miss", "another workspace"
        assert asked(server, anna, FAR)[0] == "miss"
        assert asked(server, anna, NEAR, max_tokens=7)[0] == "miss"
        for said in (None, "on", "off"):
            assert asked(server, anna, NEAR, said)[0] is None, "only who asks for it"
        server.headers = {"Authorization": f"Bearer {admin}"}
        metrics = server.metrics()
        assert metrics["kvrt_similar_answer_requests_total,result=hit"] == 3
        assert metrics["kvrt_similar_answer_requests_total,result=miss"] == 4
        assert metrics["kvrt_similar_answer_bytes"] > 1000
        own = {"Authorization": f"Bearer {bob}"}
        assert server.ask("DELETE", "/answers?workspace=acme", headers=own)[0] == 403
        assert server.ask("DELETE", "/answers", headers=own)[2] == b'{"forgotten":1}'
        assert asked(server, anna, NEAR)[0] == "similar"
        told = server.ask("DELETE", "/answers?workspace=acme")[2]
        assert told == b'{"forgotten":3}'
        assert asked(server, anna, NEAR)[0] == "miss"
        for query, count in (
            ("key=alice", 0), ("route=/v1/messages", 0), ("older=3600", 0),
            (f"key=anna&route={CHAT}&older=0", 1), ("key=anna", 0),
        ):  # fmt: skip
            told = server.ask("DELETE", f"/answers?workspace=acme&{query}")[2]
            assert told == b'{"forgotten":%d}' % count, query
        for query in ("keys=anna", "older=x", "older=-1"):
            assert server.ask("DELETE", f"/answers?workspace=acme&{query}")[0] == 400, query


def test_questions_are_compared_by_a_model_for_that() -> None:
    args = ["serve", "/no/such", "--port", "0", "--semantic-cache", "0.9"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert "--embed-model" in result.output
