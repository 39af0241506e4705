"""What clients of llama-server ask, and the shape of what they are answered.

A shape is what a value is made of: the names of fields and the types of what is in them, not the
values; of a list, what its items have together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.server.conftest import Server

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Say something."}]
GREEDY = {"temperature": 0, "seed": 3}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        path: where.
        body: None: it is a GET.
        own: fields of other protocols, which have more here than with llama-server.
    """

    path: str
    body: Any = None
    own: bool = True
    streams: bool = field(init=False)

    def __post_init__(self) -> None:
        streams = isinstance(self.body, dict) and bool(self.body.get("stream"))
        object.__setattr__(self, "streams", streams)


def _native(**fields: Any) -> Asked:
    return Asked("/completion", {"prompt": PROMPT, "n_predict": 4, **GREEDY, **fields})


def _text(**fields: Any) -> Asked:
    return Asked("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, **GREEDY, **fields})


def _chat(**fields: Any) -> Asked:
    asked = {"messages": MESSAGES, "max_tokens": 4, **GREEDY, **fields}
    return Asked("/v1/chat/completions", asked)


MANY = 48
"""Tokens of a stream: what a client is slow to read comes in fewer pieces, but hardly in two."""

USAGE = {"include_usage": True}
EVERYTHING = {"n_probs": 2, "return_tokens": True, "timings_per_token": True,
              "return_progress": True}  # fmt: skip
MESSAGE = {"model": "any", "messages": MESSAGES, "max_tokens": 4}

ASKED: Mapping[str, Asked] = {
    "health": Asked("/health"),
    "health of v1": Asked("/v1/health"),
    "models": Asked("/v1/models"),
    "models, bare": Asked("/models"),
    "properties": Asked("/props"),
    "properties, changed": Asked("/props", {}),
    "adapters": Asked("/lora-adapters"),
    "adapters, changed": Asked("/lora-adapters", []),
    "slots, fresh": Asked("/slots"),
    "completion": _native(),
    "completion, old name": Asked("/completions", {"prompt": PROMPT, "n_predict": 2, **GREEDY}),
    "completion, all that is told": _native(**EVERYTHING),
    "completion as a stream": _native(stream=True, n_predict=MANY),
    "completion as a stream, all that is told": _native(stream=True, n_predict=MANY, **EVERYTHING),
    "completion of tokens": _native(prompt=[1, 2, 3]),
    "completion of tokens and texts": _native(prompt=[1, 2, "of"]),
    "completion of an object": _native(prompt={"prompt_string": PROMPT}),
    "completions of several": _native(prompt=[PROMPT, [1, 2, 3]]),
    "completions of one": _native(n_cmpl=2),
    "completion until a word": _native(stop=[" "], n_predict=16),
    "completion of a schema": _native(json_schema=SCHEMA, n_predict=32),
    "completion of a grammar": _native(grammar='root ::= "yes" | "no"'),
    "completion, some fields": _native(response_fields=["content", "timings/prompt_n", "no/such"]),
    "completion with biases": _native(logit_bias=[[5, 1.0], [7, False]]),
    "completion in a slot": _native(id_slot=1, cache_prompt=True),
    "completion, nothing said": _native(n_predict=0),
    "completion without a prompt": Asked("/completion", {"n_predict": 4}),
    "completion too long": _native(prompt="word " * 3000),
    "text": _text(),
    "text as a stream": _text(stream=True, max_tokens=MANY),
    "text as a stream, with usage": _text(stream=True, max_tokens=MANY, stream_options=USAGE),
    "text with probabilities": _text(logprobs=2),
    "texts": _text(n=2),
    "chat": _chat(),
    "chat, bare": Asked("/chat/completions", {"messages": MESSAGES, "max_tokens": 2, **GREEDY}),
    "chat as a stream": _chat(stream=True, max_tokens=MANY),
    "chat as a stream, with usage": _chat(stream=True, max_tokens=MANY, stream_options=USAGE),
    "chat as a stream, all that is told": _chat(stream=True, max_tokens=MANY, **EVERYTHING),
    "chat with probabilities": _chat(logprobs=True, top_logprobs=2),
    "chat of a schema": _chat(
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}, max_tokens=32
    ),
    "chats": _chat(n=2),
    "chat without messages": Asked("/v1/chat/completions", {}),
    "response": Asked("/v1/responses", {"input": "Say.", "max_output_tokens": 4}, own=False),
    "response as a stream": Asked(
        "/v1/responses", {"input": "Say.", "max_output_tokens": 4, "stream": True}, own=False
    ),
    "message": Asked("/v1/messages", MESSAGE, own=False),
    "message as a stream": Asked("/v1/messages", {**MESSAGE, "stream": True}, own=False),
    "tokens of a message": Asked("/v1/messages/count_tokens", MESSAGE),
    "tokens of a chat": Asked("/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
    "tokens of a response": Asked("/v1/responses/input_tokens", {"input": "Say."}),
    "tokens": Asked("/tokenize", {"content": PROMPT, "add_special": True}),
    "tokens with pieces": Asked("/tokenize", {"content": [PROMPT, 5], "with_pieces": True}),
    "tokens of nothing": Asked("/tokenize", {}),
    "text of tokens": Asked("/detokenize", {"tokens": [1, 2, 3]}),
    "text of nothing": Asked("/detokenize", {}),
    "template": Asked("/apply-template", {"messages": MESSAGES}),
    "slots, used": Asked("/slots"),
    "slot, erased": Asked("/slots/0?action=erase", {}),
    "metrics": Asked("/metrics"),
    "filled in": Asked("/infill", {"input_prefix": "def f(", "input_suffix": "  pass"}),
    "vector where none is made": Asked("/embedding", {"content": "a"}),
    "vector of v1 where none is made": Asked("/v1/embeddings", {"input": "a"}),
    "texts sorted where none are": Asked("/rerank", {"query": "a", "documents": ["b"]}),
    "no such route": Asked("/no/such"),
}
"""Of a server whose model answers (`--metrics --props -np 2 -c 2048`), in this order."""

VECTORS: Mapping[str, Asked] = {
    "health": Asked("/health"),
    "vector": Asked("/embedding", {"content": "a text"}),
    "vectors": Asked("/embeddings", {"input": ["a text", "another"]}),
    "vectors of v1": Asked("/v1/embeddings", {"input": ["a text", "another"], "model": "any"}),
    "vector of v1, as bytes": Asked(
        "/v1/embeddings", {"input": "a text", "encoding_format": "base64"}
    ),
    "vector of content": Asked("/v1/embeddings", {"content": "a text"}),
    "vector of nothing": Asked("/v1/embeddings", {}),
    "vectors in a wrong form": Asked("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
}
"""Of one that makes vectors (`--embeddings`)."""

RANKS: Mapping[str, Asked] = {
    "texts sorted": Asked("/rerank", {"query": "a", "documents": ["b", "c"], "top_n": 1}),
    "texts sorted, v1": Asked("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    "texts sorted in other words": Asked(
        "/rerank", {"query": "a", "texts": ["b", "c"], "return_text": True}
    ),
    "texts sorted by nothing": Asked("/rerank", {"documents": ["b"]}),
    "nothing sorted": Asked("/rerank", {"query": "a", "documents": []}),
}
"""Of one that sorts texts (`--reranking`)."""


def shape(value: Any) -> Any:
    """Of a value of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return [merged([shape(each) for each in value])] if value else []
        case dict():
            return {name: shape(each) for name, each in sorted(value.items())}
    raise TypeError(type(value))


def merged(shapes: Sequence[Any]) -> Any:
    """What values of these shapes have together: fields that some do not have end with ``?``."""
    if all(isinstance(each, dict) for each in shapes):
        names = sorted({name for each in shapes for name in each})
        return {
            name if all(name in each for each in shapes) else f"{name}?": merged(
                [each[name] for each in shapes if name in each]
            )
            for name in names
        }
    if all(isinstance(each, list) for each in shapes):
        inner = [each[0] for each in shapes if each]
        return [merged(inner)] if inner else []
    kinds = {each if isinstance(each, str) else json.dumps(each) for each in shapes}
    return "|".join(sorted(kinds))


Answer = tuple[int, Mapping[str, str], bytes]
"""A status, headers, and a body."""


def ask(server: Server, asked: Asked) -> dict[str, Any]:
    """The shape of what a server answers."""
    method = "GET" if asked.body is None else "POST"
    return told(server.ask(method, asked.path, asked.body))


def told(answer: Answer) -> dict[str, Any]:
    """The shape of an answer: its status, its kind, and what it is made of."""
    status, headers, body = answer
    kind = headers["content-type"].partition(";")[0]
    found: dict[str, Any] = {"status": status, "kind": kind}
    if kind == "text/event-stream":
        return found | events(body.decode())
    if kind == "application/json":
        return found | {"shape": shape(json.loads(body))}
    lines = body.decode().splitlines()
    names = sorted(line.split()[0].partition("{")[0] for line in lines if line[:1] not in "#")
    return found | {"shape": names}


def events(text: str) -> dict[str, Any]:
    """Of a stream: its first event, those between, the last, and whether it says that it is done;
    of one whose events have names, what each kind has."""
    pieces = [piece for piece in text.split("\n\n") if piece.startswith(("data:", "event:"))]
    datas = [piece.partition("data:")[2].strip() for piece in pieces]
    done = datas[-1] == "[DONE]"
    found = [json.loads(data) for data in datas if data != "[DONE]"]
    named: dict[str, list[Any]] = {}
    for piece, value in zip(pieces, found, strict=False):
        if piece.startswith("event:"):
            name = piece.partition("event:")[2].partition("\n")[0].strip()
            named.setdefault(name, []).append(shape(value))
    if named:
        return {"events": {name: merged(shapes) for name, shapes in sorted(named.items())}}
    shapes = [shape(value) for value in found]
    between = merged(shapes[1:-1]) if len(shapes) > 2 else None
    return {"first": shapes[0], "between": between, "last": shapes[-1], "done": done}


def record(server: Server, every: Mapping[str, Asked]) -> dict[str, Any]:
    """The shapes of all answers."""
    return {name: ask(server, asked) for name, asked in every.items()}


OTHERWISE: Mapping[str, tuple[str, ...]] = {
    "slot, erased": ("",),
    "response": (".shape.completed_at",),
    "response as a stream": (".events.response.completed",),
    "message as a stream": (".events.message_start.message.usage.cache_read_input_tokens",),
}
"""What answers are without, on purpose: slots have nothing of their own; a response that was cut is
incomplete, as OpenAI has it; how much of a prompt is cached is not known before it has run."""

MORE = ("draft_n", "draft_n_accepted")
"""Fields that come with guessed tokens, which the real server guesses only where it is told to."""


def differences(name: str, real: Any, ours: Any) -> list[str]:
    """What an answer lacks; and of llama-server's own routes, what it has that the real one's has
    not."""
    own = ASKED[name].own if name in ASKED else True
    allowed = OTHERWISE.get(name, ())
    found = [each for each in lacking(real, ours) if not each.startswith(allowed or ("never",))]
    more = lacking(ours, real) if own and not allowed else []
    return found + [f"+{each}" for each in more if not each.endswith(MORE)]


def lacking(real: Any, ours: Any, at: str = "") -> list[str]:
    """What of one shape another does not have. What some items of a list lack, all may."""
    if isinstance(real, dict) and isinstance(ours, dict):
        found = []
        for name, inner in real.items():
            plain = name.removesuffix("?")
            other = ours.get(plain, ours.get(f"{plain}?"))
            if other is not None:
                found += lacking(inner, other, f"{at}.{plain}")
            elif not name.endswith("?"):
                found.append(f"{at}.{name}")
        return found
    if isinstance(real, list) and isinstance(ours, list):
        return lacking(real[0], ours[0], f"{at}[]") if real and ours else []
    return [] if real == ours else [f"{at}: {real} is {ours}"]
