"""Prompts and answers as text: conversations with all they can bring, and special tokens."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

import kvrt
from kvrt.errors import ModelError, RequestError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import CONFIG, MakeRuntime

WORDS = [f"w{i}" for i in range(int(str(CONFIG["vocab_size"])))]
SPECIAL = set(WORDS[::2])
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{{ tools | length if tools else 'w0' }} {{ mood }}{{ 'w1' * times if times }}"
    "{% if add_generation_prompt %} w9{% endif %}"
)
HELLO = [{"role": "w1", "content": "w2 w3"}]
FREE = SamplingParams(max_tokens=40)


@pytest.fixture
def runtime(tmp_path: Path, tiny_lm: Path, make_runtime: MakeRuntime) -> Runtime:
    """A model of words, every other one a special token."""
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, single_word=True) for word in sorted(SPECIAL)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (tmp_path / "config.json").write_bytes((tiny_lm / "config.json").read_bytes())
    return make_runtime(model=tmp_path)


def test_special_tokens_are_part_of_the_text_if_asked_for(runtime: Runtime) -> None:
    wishes = [FREE, SamplingParams(max_tokens=40, skip_special_tokens=False)]
    left_out, there = runtime.generate(["w1 w2"] * 2, wishes)
    said = [WORDS[token] for token in left_out.token_ids]
    assert 0 < len(SPECIAL & set(said)) < len(set(said))
    assert left_out.text.split() == [word for word in said if word not in SPECIAL]
    assert there.text.split() == said
    assert there.token_ids == left_out.token_ids


def test_a_stop_string_of_a_special_token_stops_only_where_the_token_is_text(
    runtime: Runtime,
) -> None:
    said = [WORDS[token] for token in runtime.generate("w1 w2", FREE)[0].token_ids]
    first = next(i for i, word in enumerate(said) if word in SPECIAL)
    for skip in (True, False):
        params = SamplingParams(max_tokens=40, skip_special_tokens=skip, stop=[said[first] + " "])
        result = runtime.generate("w1 w2", params)[0]
        if skip:
            assert result.finish_reason == "length"
        else:
            assert result.finish_reason == "stop"
            assert result.text.split() == said[:first]


def test_the_token_that_ends_an_answer_is_never_text(runtime: Runtime) -> None:
    said = runtime.generate("w1 w2", FREE)[0].token_ids
    end = next(token for token in said if WORDS[token] in SPECIAL)
    params = SamplingParams(max_tokens=40, skip_special_tokens=False, stop_token_ids=[end])
    result = runtime.generate("w1 w2", params)[0]
    assert result.token_ids[-1] == end
    assert WORDS[end] not in result.text.split()


def test_a_chat_brings_tools_variables_and_how_it_ends(runtime: Runtime) -> None:
    chats = [
        kvrt.Chat(HELLO),
        kvrt.Chat(HELLO, variables={"mood": "w5"}),
        kvrt.Chat(HELLO, tools=[{"name": "t"}], add_generation_prompt=False),
        kvrt.Chat(HELLO, continue_final_message=True),
    ]
    prompts = [result.prompt_token_ids for result in runtime.generate(chats, FREE)]
    assert prompts == [(1, 2, 3, 0, 9), (1, 2, 3, 0, 5, 9), (1, 2, 3, 0), (1, 2, 3)]
    (alone,) = runtime.generate(chats[1], FREE)
    assert alone.prompt_token_ids == prompts[1]
    (plain,) = runtime.generate(HELLO, FREE)
    assert plain.prompt_token_ids == prompts[0]


def test_a_chat_that_the_template_refuses_fails_alone(runtime: Runtime) -> None:
    hostile = kvrt.Chat(HELLO, variables={"times": 10**9})
    bad, worse, good = runtime.generate([kvrt.Chat(HELLO, template="rag"), hostile, HELLO], FREE)
    assert good.error is None
    assert isinstance(bad.error, RequestError)
    assert bad.error.param == "template"
    assert isinstance(worse.error, ModelError)
