"""Calls of tools and reasoning, through real clients, from a model that follows a script."""

import json
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import ollama
import openai
import pytest

from tests.server.conftest import Server, started
from tests.server.scripted_model import build

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTE = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 9}},
        "required": ["text"], "additionalProperties": False}  # fmt: skip
PARIS, OSLO = {"city": "Paris", "days": 2}, {"city": "Oslo", "days": 1}
WRONG = {"city": "Bergen", "days": 7}
TEXT = {"text": 'He said "so", {twice}'}


def _call(name: str, arguments: dict[str, Any]) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


SCRIPTS = {
    "A": _call("get_weather", PARIS),
    "B": f"Let me look.\n{_call('get_weather', OSLO)}\n{_call('take_note', TEXT)}",
    "C": "<think>\nIt is easy: no tool.\n</think>\n\nIt will rain, <b>I think</b>.",
    "D": f"<think>Where?</think>{_call('take_note', {'text': 'x'})}",
    "E": 'Use <tool_call> like this: <tool_call>{"nom": 1}</tool_call>, you see?',
    "F": "Nothing to see here.",
    "W": "Let me see." + _call("get_weather", WRONG),
}
"""By the last letter of the question."""

CALLED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "A": [("get_weather", PARIS)],
    "B": [("get_weather", OSLO), ("take_note", TEXT)],
    "C": [],
    "D": [("take_note", {"text": "x"})],
    "E": [],
    "F": [],
    "W": [("get_weather", WRONG)],
}
SAID = {"A": "", "B": "Let me look.", "C": "It will rain, <b>I think</b>.", "D": "",
        "E": SCRIPTS["E"], "F": SCRIPTS["F"], "W": "Let me see."}  # fmt: skip
THOUGHT = {"C": "It is easy: no tool.", "D": "Where?"}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": name, "description": "Does it.", "parameters": schema},
    }
    for name, schema in (("get_weather", SCHEMA), ("take_note", NOTE))
]
RESPONSES_TOOLS: Any = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]
ANTHROPIC_TOOLS: Any = [
    {"name": tool["function"]["name"], "description": "Does it.",
     "input_schema": tool["function"]["parameters"]}
    for tool in TOOLS
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = build(tmp_path_factory.mktemp("scripted"), SCRIPTS)
    options = ("--alias", "scripted", "--memory-limit", "512MiB")
    with started(tmp_path_factory.mktemp("server"), *options, model=str(folder)) as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.strict_client() as one:
        yield one


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as one:
        yield one


def question(letter: str) -> Any:
    return [{"role": "user", "content": f"What about {letter}"}]


def asked(letter: str) -> dict[str, Any]:
    return {"model": "scripted", "messages": question(letter), "temperature": 0}


@pytest.mark.parametrize("letter", SCRIPTS)
def test_a_chat_has_calls_reasoning_and_content_apart(client: openai.OpenAI, letter: str) -> None:
    answer = client.chat.completions.create(**asked(letter), tools=TOOLS)
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    found = [(c.function.name, json.loads(c.function.arguments)) for c in calls]  # type: ignore[union-attr]
    assert found == CALLED[letter]
    assert (choice.message.content or "") == SAID[letter]
    assert getattr(choice.message, "reasoning_content", "") == THOUGHT.get(letter, "")
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    assert len({call.id for call in calls}) == len(calls)
    if letter == "C":
        plain = client.chat.completions.create(**asked(letter))
        assert plain.choices[0].message.content == SAID[letter]


@pytest.mark.parametrize("letter", SCRIPTS)
def test_a_stream_of_a_chat_says_the_same_piece_by_piece(
    client: openai.OpenAI, letter: str
) -> None:
    """A busy client finds several pieces as one; arguments come as they are said in one of many."""
    most = max(pieces_of_calls(client, letter) for _ in range(8))
    assert most > 2 * len(CALLED[letter]) or not CALLED[letter]


def pieces_of_calls(client: openai.OpenAI, letter: str) -> int:
    """Ask for a stream, which says what is to be said; in how many pieces its calls came."""
    content, thought, reason = "", "", None
    calls: list[dict[str, str]] = []
    pieces = 0
    for chunk in client.chat.completions.create(**asked(letter), tools=TOOLS, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            assert call.function is not None
            if call.index == len(calls):
                assert call.id
                calls.append({"name": call.function.name or "", "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments or ""
            pieces += 1
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == CALLED[letter]
    assert content == SAID[letter]
    assert thought == THOUGHT.get(letter, "")
    assert reason == ("tool_calls" if calls else "stop")
    return pieces


def test_the_official_clients_helper_gathers_a_stream_of_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**asked("B"), tools=TOOLS) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert [c.function.name for c in message.tool_calls or ()] == ["get_weather", "take_note"]


def test_results_of_tools_go_back_to_the_model(client: openai.OpenAI, server: Server) -> None:
    first = client.chat.completions.create(**asked("A"), tools=TOOLS).choices[0].message
    assert first.tool_calls
    said: Any = [
        *question("A"), first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Rain F"},
    ]  # fmt: skip
    fields: Any = {"model": "scripted", "tools": TOOLS, "temperature": 0}
    second = client.chat.completions.create(**fields, messages=said)
    assert second.choices[0].message.content == SCRIPTS["F"]
    shown = server.post("/tokenize", {"messages": [{"role": "user", "content": "F"}]})[1]
    assert second.usage is not None
    assert second.usage.prompt_tokens > shown["count"] + 100, "the call and its result were there"
    said[1]["tool_calls"][0]["function"]["arguments"] = "{no JSON"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**fields, messages=said)


def test_tools_that_must_be_called_are_and_those_that_must_not_are_not(
    client: openai.OpenAI,
) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for letter in "AF":
        for stream in (False, True):
            answer = _gathered(client, asked(letter), "required", stream=stream)
            assert answer
            for name, arguments in answer:
                jsonschema.validate(json.loads(arguments), schemas[name])
            one: Any = {"type": "function", "function": {"name": "take_note"}}
            ((name, arguments),) = _gathered(client, asked(letter), one, stream=stream)
            assert name == "take_note"
            jsonschema.validate(json.loads(arguments), NOTE)
    none = client.chat.completions.create(**asked("A"), tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.content == SCRIPTS["A"]
    assert none.choices[0].message.tool_calls is None


def _gathered(
    client: openai.OpenAI, fields: dict[str, Any], choice: Any, *, stream: bool
) -> list[tuple[str, str]]:
    fields = {"tools": TOOLS, **fields, "tool_choice": choice}
    if stream:
        with client.chat.completions.stream(**fields) as events:
            for _ in events:
                pass
            message: Any = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**fields).choices[0].message
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def test_what_a_strict_function_is_called_with_is_held_to_its_schema(
    client: openai.OpenAI, server: Server
) -> None:
    """The model's own words are "Let me see.", and a call with what the schema does not allow."""
    strict: Any = [
        {"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS
    ]
    fields = {**asked("W"), "max_tokens": 120}
    for tools, valid in ((TOOLS, False), (strict, True)):
        for stream in (False, True):
            calls = _gathered(client, {**fields, "tools": tools}, "auto", stream=stream)
            name, arguments = calls[0]
            assert name == "get_weather"
            held = jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(arguments))
            assert held == valid, arguments
    said = client.chat.completions.create(**fields, tools=strict).choices[0].message.content
    assert said is not None
    assert said.startswith("Let me see."), "what is no call is as the model says it"
    plain, held_to = (
        client.chat.completions.create(**asked("F"), tools=tools).choices[0].message
        for tools in (TOOLS, strict)
    )
    assert held_to == plain, "no call is made of what is none"
    one = client.chat.completions.create(
        **{**asked("B"), "max_tokens": 200}, tools=strict, parallel_tool_calls=False
    )
    (only,) = one.choices[0].message.tool_calls or ()
    jsonschema.validate(json.loads(only.function.arguments), SCHEMA)  # type: ignore[union-attr]
    flat = [{"type": "function", **tool["function"]} for tool in strict]
    status, answer = server.post(
        "/v1/responses",
        {"model": "scripted", "input": "W", "tools": flat, "max_output_tokens": 120,
         "temperature": 0},
    )  # fmt: skip
    assert status == 200
    (call, *_) = [each for each in answer["output"] if each["type"] == "function_call"]
    jsonschema.validate(json.loads(call["arguments"]), SCHEMA)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": NOTE, "strict": True}}
    body = {**fields, "tools": strict, "response_format": wanted, "max_tokens": 60}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, "the format holds, and no tool can be called"
    odd = {**strict[0]["function"], "parameters": {"type": 7}}
    body = {**fields, "tools": [{"type": "function", "function": odd}]}
    status, answer = server.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "tools")


def test_one_call_is_all_where_no_more_are_wanted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asked("B"), tools=TOOLS, parallel_tool_calls=False)
    assert [c.function.name for c in answer.choices[0].message.tool_calls or ()] == ["get_weather"]  # type: ignore[union-attr]


@pytest.mark.parametrize("letter", SCRIPTS)
def test_a_response_has_items_for_calls_and_reasoning(client: openai.OpenAI, letter: str) -> None:
    fields: Any = {"model": "scripted", "input": question(letter), "tools": RESPONSES_TOOLS,
                   "temperature": 0}  # fmt: skip
    answer = client.responses.create(**fields)
    items: list[Any] = list(answer.output)
    calls = [i for i in items if i.type == "function_call"]
    assert [(c.name, json.loads(c.arguments)) for c in calls] == CALLED[letter]
    assert answer.output_text == SAID[letter]
    thoughts = [part.text for i in items if i.type == "reasoning" for part in i.content]
    assert "".join(thoughts) == THOUGHT.get(letter, "")
    with client.responses.stream(**fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert final.output_text == SAID[letter]
    streamed = [i for i in final.output if i.type == "function_call"]
    assert [(c.name, json.loads(c.arguments)) for c in streamed] == CALLED[letter]
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    joined = "".join(e.delta for e in deltas)
    assert joined == "".join(call.arguments for call in streamed)
    added = [e for e in events if e.type == "response.output_item.added"]
    done = [e for e in events if e.type == "response.output_item.done"]
    assert [e.output_index for e in added] == [e.output_index for e in done]
    if calls:
        result = {"type": "function_call_output", "call_id": calls[-1].call_id, "output": "It F"}
        said = [item.model_dump(exclude_none=True) for item in items]
        back = [*question(letter), *said, result]
        again = client.responses.create(**{**fields, "input": back})
        assert again.output_text == SCRIPTS["F"]


@pytest.mark.parametrize("letter", SCRIPTS)
def test_a_message_has_blocks_for_calls_and_reasoning(
    claude: anthropic.Anthropic, letter: str
) -> None:
    fields: Any = {"model": "scripted", "max_tokens": 400, "messages": question(letter),
                   "tools": ANTHROPIC_TOOLS, "extra_body": {"temperature": 0}}  # fmt: skip
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        for _ in stream:
            pass
        gathered = stream.get_final_message()
    for message in (whole, gathered):
        blocks: list[Any] = list(message.content)
        calls = [(b.name, b.input) for b in blocks if b.type == "tool_use"]
        assert calls == CALLED[letter]
        assert "".join(b.text for b in blocks if b.type == "text") == SAID[letter]
        thought = "".join(b.thinking for b in blocks if b.type == "thinking")
        assert thought == THOUGHT.get(letter, "")
        assert message.stop_reason == ("tool_use" if calls else "end_turn")
    if calls:
        results: Any = [
            {"type": "tool_result", "tool_use_id": b.id,
             "content": [{"type": "text", "text": "It F"}]}
            for b in blocks if b.type == "tool_use"
        ]  # fmt: skip
        back: Any = [*question(letter), {"role": "assistant", "content": whole.content},
                     {"role": "user", "content": results}]  # fmt: skip
        again = claude.messages.create(**{**fields, "messages": back})
        assert [b.text for b in again.content if b.type == "text"] == [SCRIPTS["F"]]
        counted = claude.messages.count_tokens(
            model="scripted", messages=back, tools=ANTHROPIC_TOOLS
        )
        assert counted.input_tokens == again.usage.input_tokens + (
            again.usage.cache_read_input_tokens or 0
        )


@pytest.mark.parametrize("letter", SCRIPTS)
def test_ollamas_clients_get_calls_and_reasoning_too(server: Server, letter: str) -> None:
    with ollama.Client(host=server.url) as client:
        _ask_as_ollamas_do(client, letter)


def _ask_as_ollamas_do(client: ollama.Client, letter: str) -> None:
    fields: Any = {"model": "scripted", "messages": question(letter), "tools": TOOLS,
                   "options": {"temperature": 0}, "think": True}  # fmt: skip
    whole = client.chat(**fields)
    pieces = [piece.message for piece in client.chat(**fields, stream=True)]
    for messages in ([whole.message], pieces):
        calls = [call.function for message in messages for call in message.tool_calls or ()]
        assert [(call.name, call.arguments) for call in calls] == CALLED[letter]
        assert "".join(message.content or "" for message in messages) == SAID[letter]
        assert "".join(m.thinking or "" for m in messages) == THOUGHT.get(letter, "")
    if CALLED[letter]:
        results = [
            {"role": "tool", "tool_name": name, "content": "It F"} for name, _ in CALLED[letter]
        ]
        back = [*question(letter), whole.message, *results]
        again = client.chat(**{**fields, "messages": back})
        assert again.message.content == SCRIPTS["F"]


def test_messages_can_demand_a_call(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": "scripted", "max_tokens": 400, "messages": question("F"),
                   "tools": ANTHROPIC_TOOLS}  # fmt: skip
    named = claude.messages.create(**fields, tool_choice={"type": "tool", "name": "take_note"})
    (block,) = named.content
    assert block.type == "tool_use"
    jsonschema.validate(block.input, NOTE)
    some = claude.messages.create(**fields, tool_choice={"type": "any"})
    assert {b.type for b in some.content} == {"tool_use"}


@pytest.mark.promise("P26")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("tools", {"tools": [{"type": "function", "function": {}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
        ("tools", {"tools": TOOLS * 400}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": "sometimes"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "function": 5}}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters":
                   {"type": "nothing"}}}], "tool_choice": "required"}),
        ("messages[0]", {"messages": [{"role": "assistant", "tool_calls": 5}]}),
        ("messages[0]", {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
    ],
    ids=range(10),
)  # fmt: skip
def test_tools_that_are_none_are_refused_by_name(
    server: Server, name: str, fields: dict[str, Any]
) -> None:
    status, answer = server.post("/v1/chat/completions", {**asked("F"), **fields})
    assert status == 400
    assert answer["error"]["param"] == name


def test_without_a_template_that_shows_calls_tools_are_refused_unless_they_are_demanded(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with started(tmp_path_factory.mktemp("plain")) as plain:
        fields = {**asked("F"), "model": "tiny", "tools": TOOLS}
        status, answer = plain.post("/v1/chat/completions", fields)
        assert (status, answer["error"]["param"]) == (400, "tools")
        fields = {**fields, "tool_choice": "required", "max_tokens": 300}
        status, answer = plain.post("/v1/chat/completions", fields)
        assert status == 200
        assert answer["choices"][0]["message"]["tool_calls"]


ODD: list[Any] = [None, True, 5, "x", "{", "", [], {}, [5], [[]], {"x": 1}, {"type": "function"},
                  {"name": "f"}, {"type": ["function"]}, "tool", "assistant"]  # fmt: skip
KEYS = ("type", "name", "function", "arguments", "input", "id", "call_id", "tool_use_id", "content",
        "role", "tool_calls", "output", "parameters", "input_schema", "text", "summary",
        "reasoning_content", "thinking", "tool_call_id")  # fmt: skip
KINDS = ("function", "function_call", "function_call_output", "reasoning", "message", "tool_use",
         "tool_result", "thinking", "text", "custom", "tool", "any", "auto")  # fmt: skip


def _odd(rng: random.Random, depth: int = 3) -> Any:
    """What nearly is a tool, a call, a result or a block."""
    if depth == 0 or rng.random() < 0.25:
        return rng.choice([*ODD, *KINDS])
    if rng.random() < 0.35:
        return [_odd(rng, depth - 1) for _ in range(rng.randrange(3))]
    found = {rng.choice(KEYS): _odd(rng, depth - 1) for _ in range(rng.randrange(5))}
    return {**found, "type": rng.choice(KINDS)} if rng.random() < 0.7 else found


@pytest.mark.promise("P26")
def test_no_tool_call_or_block_breaks_anything(server: Server) -> None:
    rng, found = random.Random(7), list[int]()
    for number in range(600):
        path = rng.choice(["/v1/chat/completions", "/v1/responses", "/v1/messages"])
        said = [{"role": rng.choice(["user", "assistant", "tool"]), "content": "F",
                 rng.choice(KEYS): _odd(rng)} for _ in range(rng.randrange(1, 3))]  # fmt: skip
        body = {"model": "scripted", "messages": said, "input": [*said, _odd(rng)],
                "max_tokens": 2, "max_output_tokens": 2}  # fmt: skip
        if rng.random() < 0.7:
            body["tools"] = rng.choice([TOOLS, RESPONSES_TOOLS, ANTHROPIC_TOOLS, [_odd(rng)]])
        if rng.random() < 0.3:
            body["tool_choice"] = _odd(rng)
        del body["input" if path != "/v1/responses" else "messages"]
        status, _ = server.post(path, body)
        assert status in (200, 400), (number, path, body)
        found.append(status)
    assert found.count(200) > 60
    assert found.count(400) > 60
    assert server.post("/v1/chat/completions", asked("F"))[0] == 200
