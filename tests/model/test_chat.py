"""Chat templates: which one is used, what it is given, and what becomes of its mistakes."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

import kvrt
from kvrt.errors import ModelError, RequestError
from kvrt.model.chat.template import ChatTemplate
from kvrt.model.chat.templates import Chat
from kvrt.model.tokens.tokenizer import Tokenizer, read_tokenizer
from tests.model.checkpoints import VOCAB, save_tokenizer

TEMPLATES = {
    "turns": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "blocks": """\
{%- for m in messages %}
    {%- if loop.index0 == 7 %}{% break %}{% endif %}
    {%- set ns = namespace(n=loop.index) %}
{{ ns.n }} {{ m | tojson }}
    {% generation %}
{{ m.content }}
    {% endgeneration %}
{%- endfor %}
{{ messages | length }} {{ tools is none }} {{ {'a': 'é<'} | tojson(indent=2) }}""",
    "branches without words": "{% for m in messages %}{% if m.role == 'user' %}{# nothing #}"
    "{% elif m.role == 'system' %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "dates": "{{ strftime_now('%Y') | length }}{{ messages[0].content.split('b')[-1] }}",
    "a scope of its own": "{% set x = 1 %}{% for m in messages %}{% generation %}"
    "{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "every token with a name": "{{ mask_token }}{{ cls_token }}{{ sep_token }}{{ unk_token }}"
    "{{ pad_token }}{{ image_token }}{{ absent_token is defined }}",
    "parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}",
    "parts by another name": "{% for m in messages %}{% set words = m['content'] %}"
    "{% if words is string %}{{ words }}{% else %}{% for w in words | list %}<{{ w['text'] }}>"
    "{% endfor %}{% endif %}{% endfor %}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}",
    "variables": "{{ enable_thinking }}{{ tools | tojson }}{{ documents is none }}",
}
NAMED = {"mask_token": "<m>", "cls_token": "<c>", "sep_token": "</s>", "image_token": "<i>"}
MESSAGES = [
    {"role": "system", "content": "be\nbrief "},
    {"role": "user", "content": "Hé <b>"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]
CANARY = "xyzzy-canary"


def tokenizer_with(folder: Path, kind: str = "bytes", **config: Any) -> Tokenizer:
    return read_tokenizer(save_tokenizer(folder, kind, **config), VOCAB)


def rendered(tokenizer: Tokenizer, messages: Any, **options: Any) -> str:
    assert tokenizer.chat is not None
    return tokenizer.chat.render(Chat(messages, **options))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (MESSAGES, {"add_generation_prompt": True}),
        (MESSAGES, {"add_generation_prompt": False}),
        (PARTS, {}),
        ([{"role": "assistant", "content": None, "reasoning": "r", "tool_calls": None}], {}),
        (MESSAGES, {"tools": [{"name": "t"}], "variables": {"enable_thinking": False}}),
        (MESSAGES, {"continue_final_message": True}),
        (PARTS, {"continue_final_message": True}),
        ([{"role": "user", "content": " Hé \n"}], {"continue_final_message": True}),
    ],
)
def test_templates_render_as_in_transformers(
    tmp_path: Path, name: str, messages: Any, options: dict[str, Any]
) -> None:
    source = TEMPLATES[name]
    tokenizer = tokenizer_with(
        tmp_path, tokenizer_class="TokenizersBackend", chat_template=source, **NAMED
    )
    reference = AutoTokenizer.from_pretrained(tmp_path)
    asked = {"add_generation_prompt": "continue_final_message" not in options, **options}
    variables = asked.pop("variables", {})
    # Of a template that knows no parts, transformers gives Python's notation of the list.
    joined = messages == PARTS and not name.startswith("parts")
    theirs = [{"role": "user", "content": "ab"}] if joined else messages
    try:
        want = reference.apply_chat_template(theirs, tokenize=False, **variables, **asked)
    except (ValueError, jinja2.TemplateError):
        with pytest.raises(RequestError):
            rendered(tokenizer, messages, **options)
        return
    assert rendered(tokenizer, messages, **options) == want
    assert tokenizer.chat is not None
    ids = tokenizer.encode_chat(Chat(messages, **options))
    assert ids == reference(want, add_special_tokens=False)["input_ids"]


# --- which template -----------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize("files", [False, True])
def test_of_named_templates_the_one_that_fits_is_used(tmp_path: Path, files: bool) -> None:
    named = {"default": "plain", "tool_use": "{{ tools | tojson }}", "rag": "from documents"}
    if files:
        (tmp_path / "additional_chat_templates").mkdir()
        for name, source in named.items():
            folder = "" if name == "default" else "additional_chat_templates/"
            file = "chat_template" if name == "default" else name
            (tmp_path / f"{folder}{file}.jinja").write_text(source)
        listed: Any = "not this"
    else:
        listed = [{"name": name, "template": source} for name, source in named.items()]
    tokenizer = tokenizer_with(tmp_path, tokenizer_class="TokenizersBackend", chat_template=listed)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for options in ({}, {"tools": TOOLS}, {"template": "rag", "tools": TOOLS}):
        asked = {key.replace("template", "chat_template"): value for key, value in options.items()}
        want = reference.apply_chat_template(MESSAGES, tokenize=False, **asked)
        assert rendered(tokenizer, MESSAGES, **options) == want


def test_without_a_default_the_names_are_told(tmp_path: Path) -> None:
    named = [{"name": name, "template": name} for name in ("tool_use", "rag")]
    tokenizer = tokenizer_with(tmp_path, chat_template=named)
    with pytest.raises(RequestError, match="rag, tool_use; none of them is the default") as caught:
        rendered(tokenizer, MESSAGES)
    assert caught.value.param == "template"
    with pytest.raises(RequestError, match="none has the name given"):
        rendered(tokenizer, MESSAGES, template="default")
    assert rendered(tokenizer, MESSAGES, template="rag") == "rag"
    assert rendered(tokenizer, MESSAGES, tools=TOOLS) == "tool_use"


@pytest.mark.parametrize(
    "listed",
    [7, [{"name": "default"}], [{"template": "x"}], {"default": 3}, [[]] * 2 + [{"name": 1}]],
)
def test_templates_that_are_none_are_refused(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template"):
        tokenizer_with(tmp_path, chat_template=listed)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% generation %}{% break %}{% endgeneration %}",
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "".join(f"{{% for a{i} in [1] %}}" for i in range(25)) + "x" + "{% endfor %}" * 25,
        "{{ 1 | no_such_filter }}",
    ],
)
def test_a_template_that_cannot_be_compiled_is_refused_when_the_model_is_loaded(
    tmp_path: Path, source: str
) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ModelError, match=r"chat_template\.jinja: chat template is not valid"):
        read_tokenizer(save_tokenizer(tmp_path), VOCAB)


def test_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    assert not tokenizer.has_chat
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.encode_chat(Chat(MESSAGES))


# --- what it is given ---------------------------------------------------------------------------


def test_a_bos_token_is_not_added_to_a_rendered_chat(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "pieces", chat_template="{{ bos_token }}a")
    assert tokenizer.encode_chat(Chat(MESSAGES)).count(1) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ '>' + m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_parts_of_text_are_joined_for_a_template_that_knows_no_parts(template: str) -> None:
    text = ChatTemplate(template, "t", {}).render(PARTS)
    assert text.removeprefix(">") == "ab"


@pytest.mark.parametrize(
    "part",
    [{"type": "image_url", "image_url": {}}, {"type": "text"}, {"type": "text", "text": 3}, 5],
)
@pytest.mark.parametrize("template", ["{{ messages }}", TEMPLATES["parts"]])
def test_content_other_than_text_is_refused(template: str, part: Any) -> None:
    messages = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    with pytest.raises(RequestError, match="other than text") as caught:
        ChatTemplate(template, "t", {}).render(messages)
    assert caught.value.param == "messages[1].content"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ({"role": "user"}, "messages"),
        (None, "messages"),
        ([{"content": "x"}], "messages[0]"),
        ([MESSAGES[0], {"role": 3}], "messages[1]"),
        (["x"], "messages[0]"),
        ([{"role": "user", "content": object()}], "messages[0]"),
        ([{"role": "user", "content": {1: "x"}}], "messages[0]"),
        *(
            ([{"role": role, "content": content}], "messages[0].content")
            for role in ("system", "developer", "user", "assistant")
            for content in (3, True, {})
        ),
        ([{"role": "tool", "content": 3}], "messages[0].content"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate("{{ messages }}", "t", {}).render(messages)
    assert caught.value.param == param


def test_what_a_tool_has_answered_may_be_an_object() -> None:
    template = ChatTemplate("{{ messages[0].content | tojson }}", "t", {})
    assert template.render([{"role": "tool", "content": {"degrees": 20}}]) == '{"degrees": 20}'


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": "t"}, "tools"),
        ({"tools": ["t"]}, "tools"),
        ({"variables": [1]}, "variables"),
        ({"variables": {"messages": []}}, "variables"),
        ({"template": 3}, "template"),
        ({"continue_final_message": 1}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_a_chat_that_is_none_is_refused_when_it_is_made(options: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        kvrt.Chat(MESSAGES, **options)
    assert caught.value.param == param


def test_a_template_changes_nothing_of_its_caller(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": ["a"], "more": {"x": [1]}}]
    template = "{% for m in messages %}{{ m.more.x.append(2) }}{% endfor %}"
    messages[0]["content"] = "a"
    before = json.dumps(messages)
    with pytest.raises(ModelError, match="not safe"):
        ChatTemplate(template, "t", {}).render(messages)
    assert json.dumps(messages) == before


# --- continuing a message -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "content"),
    [("{{ messages[0].role }}", "x"), (TEMPLATES["turns"], None), (TEMPLATES["parts"], [])],
)
def test_a_message_that_cannot_be_continued_is_refused(template: str, content: Any) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(template, "t", {}).render(
            [{"role": "user", "content": content}], continue_final_message=True
        )
    assert caught.value.param == "continue_final_message"


# --- what it says -------------------------------------------------------------------------------


def test_a_template_can_refuse_messages_in_its_own_words(tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate(template, "t", {}).render(MESSAGES)


@pytest.mark.promise("P41")
@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception(messages[0].content) }}",
        "{{ raise_exception('no ' ~ messages[0].content) }}",
        "{{ messages[0].content + 1 }}",
        "{{ {}[messages[0].content].x }}",
        "{{ messages[0][messages[0].content].foo }}",
        "{{ messages[0].content | round }}",
        "{% include messages[0].content %}",
    ],
)
def test_what_a_template_raises_quotes_no_message(template: str) -> None:
    with pytest.raises((RequestError, ModelError)) as caught:
        ChatTemplate(template, "t", {}).render([{"role": "user", "content": CANARY}])
    assert CANARY not in f"{caught.value!r} {caught.value} {caught.value.fix}"
    assert caught.value.__context__ is None or caught.value.__suppress_context__
