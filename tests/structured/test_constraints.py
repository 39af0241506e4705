"""What an answer may say is what it says, however it is asked, and nobody else notices."""

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvrt import Constraint, RequestError, Result, Runtime, SamplingParams
from kvrt.engine.events import StepDone

PROMPT = "def read_lines(path):\n    return json.dumps("
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain", "€"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
NAME = st.sampled_from(["a", "b_c", "d e", "é", "x1", '"q"'])
VALUE = (
    st.none() | st.booleans() | st.integers(-999, 999) | st.sampled_from(["", "tea", "a\nb", "雨"])
)
LEAF = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-99, 0), st.integers(0, 999)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[1]}
    ),
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.sampled_from(["^[a-c]{1,3}$", "^\\d{2}-\\d{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    VALUE.map(lambda value: {"const": value}),
    st.lists(VALUE, min_size=1, max_size=3).map(lambda values: {"enum": values}),
)


def _object(parts: tuple[dict[str, Any], set[str]]) -> dict[str, Any]:
    properties, required = parts
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(required & properties.keys()),
        "additionalProperties": False,
    }


SCHEMA = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.tuples(st.dictionaries(NAME, inner, max_size=3), st.sets(NAME)).map(_object),
        st.tuples(inner, st.integers(0, 3)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=5,
)


def ask(runtime: Runtime, constraint: Constraint, **params: Any) -> Result:
    result = runtime.generate(
        PROMPT, SamplingParams(**{"max_tokens": 400, "constraint": constraint, **params})
    )[0]
    if result.error is not None:
        raise result.error
    return result


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMA, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.8, 1.5]))
def test_whatever_the_schema_and_the_seed_the_answer_is_json_that_is_valid_under_it(
    tiny: Runtime, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    result = ask(tiny, Constraint.json_schema(schema), seed=seed, temperature=temperature)
    assert result.finish_reason == "stop"
    jsonschema.validate(json.loads(result.text), schema)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint.regex(r"[ab]{3}-[0-9]{1,4}x"), r"[ab]{3}-[0-9]{1,4}x"),
        (Constraint.choice(["yes", "no", "perhaps so"]), "yes|no|perhaps so"),
        (Constraint.grammar('start: "<" /[0-9]{2}/ ("," /[a-z]/)? ">"'), r"<\d\d(,[a-z])?>"),
        (Constraint.grammar('root ::= "a" [0-9] [0-9] | "z" "y"?'), r"a\d\d|zy?"),
        (Constraint.regex("(ü|雨){2}"), "(ü|雨){2}"),
    ],
)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.5, "seed": 3, "n": 3},
        {"temperature": 1.0, "seed": 4, "speculate": 6, "top_p": 0.5, "top_k": 5},
        {"beam_width": 3, "n": 2},
        {"ignore_eos": True},
        {"min_tokens": 300},
        {"repetition_penalty": 1.5, "presence_penalty": 2.0},
    ],
    ids=lambda params: " ".join(params) or "greedy",
)
def test_a_pattern_a_choice_and_a_grammar_hold_however_tokens_are_chosen(
    tiny: Runtime, constraint: Constraint, pattern: str, params: dict[str, Any]
) -> None:
    for completion in ask(tiny, constraint, **params).completions:
        assert completion.finish_reason == "stop"
        assert re.fullmatch(pattern, completion.text)


def test_an_answer_goes_on_while_it_may_until_the_model_ends_it(tiny: Runtime) -> None:
    """Where more may follow, an end token decides, and comes nowhere else."""
    end = tiny.model.encode("b", special=False)[0]
    free = Constraint.regex("[ab]{2,400}")
    result = ask(tiny, free, stop_token_ids=[end], max_tokens=60, logit_bias={end: 100})
    assert result.token_ids[-1] == end
    assert len(result.text) >= 2, "it ended no earlier than it may"
    assert ask(tiny, free, max_tokens=20, ignore_eos=True).finish_reason == "length"


def test_speculation_does_not_change_what_is_said_under_a_constraint(tiny: Runtime) -> None:
    items = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    for params in ({}, {"temperature": 0.9, "seed": 11}):
        plain = ask(tiny, Constraint.json_schema(items), speculate=0, logprobs=2, **params)
        fast = ask(tiny, Constraint.json_schema(items), speculate=8, logprobs=2, **params)
        assert fast.token_ids == plain.token_ids
        assert fast.completions[0].logprobs == plain.completions[0].logprobs
        assert fast.usage.accepted_tokens > 0


def test_what_a_constraint_leaves_no_choice_of_saves_steps_and_changes_nothing(
    tiny: Runtime,
) -> None:
    names = ["the_first_of_the_keys", "another_key_that_is_long", "what_remains_to_be_said"]
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    steps: list[int] = []

    def count(event: object) -> None:
        if isinstance(event, StepDone):
            steps.append(event.number)

    for params in ({}, {"temperature": 1.0, "seed": 3, "n": 2}):
        counts, results = [], []
        for speculate in (0, None, 4):
            tiny.add_observer(count)
            results.append(ask(tiny, Constraint.json_schema(schema), speculate=speculate, **params))
            tiny.remove_observer(count)
            counts.append(len(steps))
            steps.clear()
        plain, forced, both = results
        assert [c.token_ids for c in plain.completions] == [c.token_ids for c in forced.completions]
        assert [c.token_ids for c in plain.completions] == [c.token_ids for c in both.completions]
        assert plain.usage.drafted_tokens == 0
        assert forced.usage.accepted_tokens > 10
        assert counts[1] < counts[0]


def test_stop_strings_and_max_tokens_cut_a_constrained_answer_short(tiny: Runtime) -> None:
    whole = ask(tiny, Constraint.json_schema(PERSON)).text
    stopped = ask(tiny, Constraint.json_schema(PERSON), stop=['"age"'])
    assert whole.startswith(stopped.text)
    assert stopped.finish_reason == "stop"
    assert '"age"' not in stopped.text
    short = ask(tiny, Constraint.json_schema(PERSON), max_tokens=3)
    assert short.finish_reason == "length"
    assert whole.startswith(short.text)


def test_a_neighbour_without_a_constraint_says_what_it_says_alone(tiny: Runtime) -> None:
    free = SamplingParams(max_tokens=48, temperature=0.7, seed=5)
    alone = tiny.generate(PROMPT, free)[0]
    schema = Constraint.json_schema(PERSON)
    held = SamplingParams(max_tokens=200, temperature=0.7, seed=6, constraint=schema)
    alone_held = tiny.generate(PROMPT, held)[0]
    results = tiny.generate([PROMPT] * 6, [free, held, free, held, free, held])
    assert [r.token_ids for r in results] == [alone.token_ids, alone_held.token_ids] * 3


def test_preempted_and_resumed_requests_say_the_same(tiny: Runtime) -> None:
    items = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    params = [
        SamplingParams(temperature=0.9, seed=s, constraint=Constraint.json_schema(items))
        for s in range(3)
    ]
    long = PROMPT * 20
    alone = [tiny.generate(long, each)[0] for each in params]
    limit = tiny.model.weight_bytes + tiny.cache.min_bytes
    with Runtime(
        "tiny", backend="cpu", debug=True, memory_limit=limit, prefix_cache=False
    ) as narrow:
        results = narrow.generate([long] * 3, params)
    assert sum(result.usage.preemptions for result in results) > 0
    assert [r.token_ids for r in results] == [r.token_ids for r in alone]


def test_what_cannot_be_banned_together_ends_its_own_request_alone(tiny: Runtime) -> None:
    (token,) = tiny.model.encode("a", special=False)
    held = SamplingParams(
        max_tokens=8, constraint=Constraint.regex("a{3}"), bad_words=["a", "aa", "aaa"],
        logit_bias={token: -100},
    )  # fmt: skip
    free = SamplingParams(max_tokens=16)
    alone = tiny.generate(PROMPT, free)[0]
    broken, other = tiny.generate([PROMPT, PROMPT], [held, free])
    assert isinstance(broken.error, RequestError)
    assert other.token_ids == alone.token_ids
