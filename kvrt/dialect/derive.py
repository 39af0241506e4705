"""A model's dialect, from its chat template: rendered with and without a call, and compared.

    without    <|im_start|>assistant\nSaid.<|im_end|>
    with       <|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": ...}\n</tool_call>...
                                     |-trigger-|  |------ what is known ------|

(The idea is llama.cpp's: docs/autoparser.md there.)
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvrt.dialect.marks import Calls, Dialect, Reasoning, segments
from kvrt.errors import KvrtError
from kvrt.model.chat.templates import Chat, ChatTemplates

LONGEST_WORD = 40
USER, SAID, THOUGHT = "kvrtasks", "Kvrtsaid", "Kvrtthought"
NAME, OTHER = "kvrtfirst", "kvrtother"
KEY, KEY2, VALUE, VALUE2 = "kvrtkey", "kvrtnumber", "kvrtvalue", 2718
ARGUMENTS = {KEY: VALUE, KEY2: VALUE2}
SIGNS = re.compile(r"[^\w\s]*\Z")
THINK = re.compile(r"</?(\w*think\w*(?::\w+)?)>\s*\Z", re.IGNORECASE)
ANNOUNCED = re.compile(r"<[\w|:]*tool_?call[\w|:]*>", re.IGNORECASE)


def derive(templates: ChatTemplates) -> Dialect:
    """The dialect that a template's own words show; what it does not show is None."""
    shown = _Shown(templates)
    said = shown.turn({"content": SAID})
    thought = shown.turn({"content": SAID, "reasoning_content": THOUGHT})
    reasoning, openings = _reasoning(thought, said, shown.begun)
    for texts in (False, True):
        if found := _calls(shown, texts, (said, thought)):
            return Dialect(found, reasoning, openings, texts=texts)
    return Dialect(_instructed(shown), reasoning, openings)


class _Shown:
    """What a template makes of small conversations; "" where it refuses."""

    def __init__(self, templates: ChatTemplates) -> None:
        self._templates = templates
        self.prompt = self._render([], begins=True)
        self.begun = self.prompt.rpartition(USER)[2]

    def turn(self, message: Mapping[str, Any]) -> str:
        """What follows the user's words, with an assistant's message behind them."""
        return self._render([{"role": "assistant", **message}], begins=False).rpartition(USER)[2]

    def _render(self, further: Sequence[Mapping[str, Any]], *, begins: bool) -> str:
        messages = [{"role": "user", "content": USER}, *further]
        variables = {
            "bos_token": "",
            "datetime": "",
            "functions": "[]",
        }  # some want these to be there
        for more in ({}, variables):
            chat = Chat(messages, tools=_TOOLS, variables=more, add_generation_prompt=begins)
            try:
                return self._templates.render(chat)
            except KvrtError:
                continue
        return ""


def _tool(name: str) -> dict[str, Any]:
    properties = {KEY: {"type": "string", "description": "a"},
                  KEY2: {"type": "integer", "description": "b"}}  # fmt: skip
    schema = {"type": "object", "properties": properties, "required": [KEY]}
    function = {"name": name, "description": "Does it.", "parameters": schema}
    return {"type": "function", "function": function}


_TOOLS = [_tool(NAME), _tool(OTHER)]


def _call(name: str, number: int, texts: bool) -> dict[str, Any]:
    arguments = json.dumps(ARGUMENTS) if texts else ARGUMENTS
    # The id is of the form that Mistral's templates insist on.
    return {"id": f"kvrtid00{number}", "type": "function",
            "function": {"name": name, "arguments": arguments}}  # fmt: skip


# --- reasoning -------------------------------------------------------------------------------


def _reasoning(thought: str, said: str, begun: str) -> tuple[Reasoning | None, tuple[str, ...]]:
    """What stands around reasoning, and what may stand before content."""
    header = _common(said, begun)
    opening = said[len(header) :].partition(SAID)[0].strip() if SAID in said else ""
    begins = begun[len(header) :].strip()  # where each prompt begins the reasoning itself
    openings = [opening] if opening else []
    before, found, behind = thought.partition(THOUGHT)
    between = behind.partition(SAID)[0].strip()
    if not found or not between or SAID not in behind:
        return _paired(begins) or _paired(opening) or _thinking(begun), tuple(openings)
    end = _first_mark(between)
    if rest := between[len(end) :].strip():
        openings.append(rest)
    if end not in begins and re.search(r"[<\[ ]", begins):  # a marker, or a sentence
        return Reasoning(_last_mark(begins), end), tuple(dict.fromkeys(openings))
    begin = before[len(_common(before, said.partition(SAID)[0])) :].strip()
    mark = _last_mark(before)
    if thought.count(mark) > 1:  # a word before it says which
        mark = "".join(segments(before.rstrip())[-3:])
    return Reasoning(begin or mark, end), tuple(dict.fromkeys(openings))


def _paired(text: str) -> Reasoning | None:
    """Reasoning that is closed at once, or a marker that says it is thought and how it ends."""
    parts = [part.strip() for part in segments(text) if part.strip()]
    if len(parts) in (2, 3) and all(part.startswith("<") for part in (parts[0], parts[-1])):
        return Reasoning("".join(parts[:-1]), parts[-1])
    return _thinking(text)


def _thinking(text: str) -> Reasoning | None:
    mark = THINK.search(text)
    return None if mark is None else Reasoning(f"<{mark[1]}>", f"</{mark[1]}>")


def _first_mark(text: str) -> str:
    """The first marker, and if words follow it, up to the next; or all, if there is none."""
    parts = segments(text)
    if parts[0].startswith(("<", "[")) and len(parts) > 2 and parts[1].strip():
        return parts[0] if parts[1].startswith(("<", "[")) else "".join(parts[:3])
    return parts[0].strip()


def _last_mark(text: str) -> str:
    return next((part.strip() for part in reversed(segments(text)) if part.strip()), "")


# --- calls -----------------------------------------------------------------------------------


def _calls(shown: _Shown, texts: bool, others: Sequence[str]) -> Calls | None:
    first = _call(NAME, 1, texts)
    for content in ("", None):
        turn = shown.turn({"content": content, "tool_calls": [first]})
        if NAME in turn and KEY in turn:
            break
    else:
        return None
    header = max(_common(turn, others[0]), _common(turn, shown.begun), key=len)
    text = turn[len(header) :]
    return (
        _json_calls(text)
        or _named_calls(text, others)
        or _python_calls(text)
        or _quoted_calls(text, others)
        or _tagged_calls(text, others)
    )


def _json_calls(text: str) -> Calls | None:
    name_at = text.find(NAME)
    for at in [m.start() for m in re.finditer(r"[\[{]", text[:name_at])]:
        try:
            value, length = json.JSONDecoder().raw_decode(text[at:])
        except ValueError:
            continue
        while isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, dict) or at + length < name_at:
            continue
        name, arguments = _path(value, NAME), _path(value, ARGUMENTS)
        if arguments is None:
            arguments = _path(value, json.dumps(ARGUMENTS))
        if arguments is None or (name is None and arguments != (NAME,)):
            continue
        return Calls(
            kind="json", trigger=text[:at].strip(), name=name or (),
            arguments=() if name is None else arguments, tail=_tail(text[at + length :]),
        )  # fmt: skip
    return None


def _path(value: object, wanted: object) -> tuple[str, ...] | None:
    """The keys that lead to a value."""
    if value == wanted:
        return ()
    if isinstance(value, dict):
        for key, inner in value.items():
            if (found := _path(inner, wanted)) is not None:
                return (key, *found)
    return None


def _named_calls(text: str, others: Sequence[str]) -> Calls | None:
    for at in [m.start() for m in re.finditer(r"{", text)]:
        try:
            value, length = json.JSONDecoder().raw_decode(text[at:])
        except ValueError:
            continue
        before = text[:at].rpartition(NAME)
        if value == ARGUMENTS and before[1]:
            return Calls(
                kind="named", trigger=_trigger(before[0], others),
                before_name=_before_name(before[0]), before_arguments=_last_mark(before[2]).strip(),
                tail=_tail(text[at + length :]),
            )  # fmt: skip
    return None


def _python_calls(text: str) -> Calls | None:
    call = re.search(
        rf"\[?{NAME}\({KEY}\s*=\s*(['\"]){VALUE}\1,\s*{KEY2}\s*=\s*{VALUE2}\)\]?", text
    )
    if call is None:
        return None
    trigger, tail = text[: call.start()].strip(), _tail(text[call.end() :])
    return Calls(kind="python", trigger=trigger, tail=tail)


def _quoted_calls(text: str, others: Sequence[str]) -> Calls | None:
    call = re.search(rf"{NAME}{{{KEY}:(\W+){VALUE}\1,\s*{KEY2}:{VALUE2}}}", text)
    if call is None:
        return None
    before = text[: call.start()]
    return Calls(
        kind="quoted", trigger=_trigger(before, others), before_name=_before_name(before),
        quote=call[1], tail=_tail(text[call.end() :]),
    )  # fmt: skip


def _tagged_calls(text: str, others: Sequence[str]) -> Calls | None:
    """before NAME a KEY b VALUE c KEY2 b2 VALUE2 d"""
    order = (KEY, VALUE, KEY2, str(VALUE2))
    before, _, rest = text.partition(KEY)
    before, found, after_name = before.rpartition(NAME)
    gaps = []
    for word in order[1:]:
        gap, there, rest = rest.partition(word)
        if not there:
            return None
        gaps.append(gap)
    if not found:
        return None
    first, between, second = gaps
    end = _common(between, rest)
    key = between[len(end) :].strip()
    if not end.strip() or not after_name.rstrip().endswith(key):
        return None
    value = _shared_end(first, second)
    tail = _tail(rest[len(end) :])
    return Calls(
        kind="tagged", trigger=_trigger(before, others), before_name=_before_name(before),
        key=key, value=value.strip(), end=end.strip(), tail=tail,
    )  # fmt: skip


def _shared_end(first: str, second: str) -> str:
    """What two texts end with, from a marker or a sign on."""
    shared = _prefix(first[::-1], second[::-1])[::-1]
    return shared if first == second else _signs(shared)


def _signs(text: str) -> str:
    found = SIGNS.search(text.strip())
    return found[0] if found else ""


def _trigger(before: str, others: Sequence[str]) -> str:
    """The shortest beginning that no turn without a call has."""
    before = before.rpartition(NAME)[2].lstrip()
    taken = ""
    for part in segments(before):
        taken += part
        if taken.strip() and not any(taken.strip() in other for other in others):
            break
    return taken.strip()


def _before_name(before: str) -> str:
    """From the last marker on, also one that the name is inside of."""
    parts = [part for part in segments(before) if part.strip()]
    if not parts:
        return ""
    last = len(parts) - 1
    while last and not parts[last].startswith(("<", "[")):
        last -= 1
    return "".join(parts[last:]).strip()


def _tail(behind: str) -> tuple[str, ...]:
    """Markers, and short words between them."""
    parts = [part.strip() for part in segments(behind)]
    return tuple(dict.fromkeys(part for part in parts if part and len(part) <= LONGEST_WORD))


def _instructed(shown: _Shown) -> Calls | None:
    """Of a template that writes no calls: what it tells the model to begin them with."""
    mark = ANNOUNCED.search(shown.prompt)
    written = NAME in shown.turn({"content": "", "tool_calls": [_call(NAME, 1, False)]})
    if mark is None or written:
        return None
    return Calls(
        kind="json", trigger=mark[0], name=("name",), arguments=("arguments",),
        tail=(mark[0].replace("<", "</", 1),),
    )  # fmt: skip


def _prefix(first: str, second: str) -> str:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(letter for letter, _ in pairs)


def _common(first: str, second: str) -> str:
    """What both begin with, but no part of a marker."""
    shared = _prefix(first, second)
    cut = max(shared.rfind("<"), shared.rfind("["))
    inside = cut >= 0 and not re.search(r"[>\]]", shared[cut:])
    marker = inside and re.match(r"<[^<>\s]|\[[A-Z]", max(first, second, key=len)[cut:])
    return shared[:cut] if marker else shared
