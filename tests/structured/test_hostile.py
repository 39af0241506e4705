"""Constraints that mean nothing, or too much: each is refused in its time, and quoted nowhere."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import pytest

from kvrt import Constraint, RequestError, Runtime, SamplingParams
from kvrt.structured import trial
from kvrt.structured.constraint import MAX_SOURCE

SECRET = "mysecretword"
PROMPT = "def f(x):\n"


def _wide(depth: int) -> dict[str, Any]:
    """Each level has the one below it twice."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = schema
        schema = {"anyOf": [{"properties": {name: inner}} for name in "ab"]}
    return schema


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


BAD = {
    "a pattern that ends too soon": lambda: Constraint.regex(f"({SECRET}"),
    "look-around": lambda: Constraint.regex(f"(?={SECRET})b"),
    "nested brackets": lambda: Constraint.regex("(" * 5000 + SECRET + ")" * 5000),
    "a type that is none": lambda: Constraint.json_schema({"type": SECRET}),
    "a keyword that cannot be held": lambda: Constraint.json_schema({"not": {"const": SECRET}}),
    "a place elsewhere": lambda: Constraint.json_schema({"$ref": f"http://{SECRET}/schema"}),
    "nothing is valid": lambda: Constraint.json_schema(False),
    "a pattern in a schema": lambda: Constraint.json_schema({"pattern": f"({SECRET}"}),
    "twelve doublings": lambda: Constraint.json_schema(_wide(12)),
    "a deep schema": lambda: Constraint.json_schema(_deep(400)),
    "a schema deeper than Python goes": lambda: Constraint.json_schema(_deep(100_000)),
    "a grammar that is none": lambda: Constraint.grammar(SECRET),
    "a rule that is not there": lambda: Constraint.grammar(f"start: {SECRET}"),
    "a grammar without texts": lambda: Constraint.grammar(f'start: start "{SECRET}"'),
    "brackets in a grammar": lambda: Constraint.grammar(
        "start: " + "(" * 9999 + '"a"' + ")" * 9999
    ),
    "GBNF that is none": lambda: Constraint.grammar(f"{SECRET} ::= {SECRET} ("),
    "no text at all": lambda: Constraint.regex(""),
    "too long": lambda: Constraint.regex("a" * (MAX_SOURCE + 1)),
    "half a character": lambda: Constraint.choice(["\ud800"]),
    "no choices": lambda: Constraint.choice([]),
    "an empty choice": lambda: Constraint.choice(["a", ""]),
    "no numbers": lambda: Constraint.json_schema({"const": float("nan")}),
    "no schema": lambda: Constraint.json_schema(f"[{SECRET}"),
}


@pytest.mark.promise("P41")
@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_what_means_nothing_is_refused_by_name_and_never_quoted(tiny: Runtime, make: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError) as caught:
        tiny.stream(PROMPT, SamplingParams(max_tokens=4, constraint=make()))
    assert time.monotonic() - begun < trial.SECONDS + 20, "its time, and that of a busy machine"
    assert caught.value.param == "constraint"
    assert SECRET not in f"{caught.value} {caught.value.fix}"
    assert len(str(caught.value)) < 200


LARGE = {
    "repeats of repeats": Constraint.regex("(a{1,1000}){1,1000}"),
    "a window behind each letter": Constraint.regex("|".join(f"(.*{c}.{{40}})" for c in "abcdefg")),
    "stars of stars": Constraint.regex("(a|aa)*" * 20),
    "a long string": Constraint.json_schema(
        {"type": "string", "minLength": 10, "maxLength": 10**5}
    ),
    "a schema of itself": Constraint.json_schema(
        {"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    ),
    "many ways to say one thing": Constraint.grammar('start: s\ns: s s s | "a" | ""'),
    "a wide schema": Constraint.json_schema(
        {"properties": {f"p{n}": {"type": "string", "pattern": f".*{n}.{{9}}"} for n in range(400)}}
    ),
}


@pytest.mark.parametrize("constraint", LARGE.values(), ids=LARGE)
def test_what_is_large_is_answered_or_ends_alone_while_others_go_on(
    tiny: Runtime, constraint: Constraint
) -> None:
    free = SamplingParams(max_tokens=24)
    alone = tiny.generate(PROMPT, free)[0]
    held = SamplingParams(max_tokens=24, temperature=1.2, seed=1, constraint=constraint)
    first, large, last = tiny.generate([PROMPT] * 3, [free, held, free])
    assert first.token_ids == last.token_ids == alone.token_ids
    assert large.error is None or isinstance(large.error, RequestError)


def test_one_that_takes_too_long_is_given_up_while_others_are_answered(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    slow = Constraint.regex("slow")
    with pytest.raises(RequestError, match="too large or too complex"):
        tiny.stream(PROMPT, SamplingParams(max_tokens=4, constraint=slow))
    monkeypatch.setattr(trial, "SECONDS", 60.0)
    with pytest.raises(RequestError, match="too large or too complex"):  # it is known by now
        tiny.stream(PROMPT, SamplingParams(max_tokens=4, constraint=slow))
    other = SamplingParams(max_tokens=9, constraint=Constraint.regex("slower"))
    assert tiny.generate(PROMPT, other)[0].text == "slower"


def test_threads_ask_at_once_and_no_process_is_left(tiny: Runtime) -> None:
    import psutil

    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        params = SamplingParams(max_tokens=20, constraint=Constraint.regex(f"number {number}"))
        texts[number] = runtime.generate(PROMPT, params)[0].text

    before = {process.pid for process in psutil.Process().children()}
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({p.pid for p in psutil.Process().children()} - before) <= trial.SPARE
    assert texts == {number: f"number {number}" for number in range(6)}
    assert {process.pid for process in psutil.Process().children()} <= before


def test_a_process_that_tries_constraints_ends_with_the_one_that_asks_it(tiny: Runtime) -> None:
    """Also where that is killed: what it reads from is closed then."""
    assert tiny.model.tokenizer is not None
    text, end = tiny.model.tokenizer.with_end()
    trials = trial.Trials(text, end + 1, end)
    assert isinstance(trials.grammar(Constraint.regex("a")), str)
    (child,) = trials._idle
    assert child._process.stdin is not None
    child._process.stdin.close()
    assert child._process.wait(60) == 0
    assert isinstance(trials.grammar(Constraint.regex("b")), str), "another one takes its place"
    trials.close()


NEVER = """
import sys, kvrt.structured.child as child
def compiled(*_):
    print("begun", file=sys.stderr, flush=True)
    while True: pass
child.compiled = compiled
child.main()
"""


@pytest.mark.promise("P9")
def test_a_process_that_never_comes_to_an_end_ends_when_nobody_is_left_to_kill_it(
    tiny: Runtime,
) -> None:
    assert tiny.model.tokenizer is not None
    text, end = tiny.model.tokenizer.with_end()
    first = {"tokenizer": text, "vocab": end + 1, "end": end}
    command = [sys.executable, "-c", NEVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        for each in (first, asdict(Constraint.regex("a"))):
            child.stdin.write(json.dumps(each).encode() + b"\n")
        child.stdin.flush()
        assert child.stderr.readline() == b"begun\n"
        child.stdin.close()  # the one that asks is gone
        begun = time.monotonic()
        assert child.wait(60) == -signal.SIGALRM
        assert time.monotonic() - begun < trial.SECONDS + 0.5


def test_without_a_tokenizer_or_the_library_a_constraint_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kvrt.structured.guides import Guides

    constraint = Constraint.regex("a")
    with pytest.raises(RequestError, match="needs a tokenizer"):
        Guides(None, 10).of(constraint)

    class Some:
        def with_end(self) -> tuple[str, int]:
            return "{}", 9

    with pytest.raises(RequestError, match="cannot be constrained"):
        Guides(Some(), 10).of(constraint)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError) as caught:
        Guides(Some(), 10).of(constraint)
    assert "kvrt[structured]" in caught.value.fix
