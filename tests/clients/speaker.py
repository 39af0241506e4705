"""A model that says what the clients' own tests wait for: see `tests.server.scripted_model`."""

import json
import re

SUNNY = "It is sunny, and you may go out."
PLAIN = "Here is what there is to say, so that you know it: nothing at all."


def _forced(name: str, *arguments: str) -> list[str]:
    """A call that has to come is written so: the beginning of its arguments is no choice."""
    first, *rest = arguments
    return [f'[{{"name": "{name}", "arguments": {first}', *rest]


def _free(name: str, **arguments: object) -> str:
    """A call as the model's template has it."""
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


SCRIPTS: dict[str, str | list[str]] = {
    "P": PLAIN,
    "T": SUNNY,
    "R": "<think>\nIs it hard?\n</think>\n\nNo, it is not.",
    "J": ['{"setup": "', "Why do cats purr?", '", "punchline": "', "They have no words.", '"}'],
    "W": _free("get_weather", location="Oslo"),
    "M": _forced("magic_function", '{"input": ', "3", "}}]"),
    "N": _forced("magic_function_no_args", "{}}]"),
    "G": _forced("greeting_generator", '{"answer_style": "', "a pirate's"),
    "C": _forced("unicode_customer", '{"customer_name": "', "你好こんにちは"),
    "m": _free("magic_function", input=3),
    "n": _free("magic_function_no_args"),
    "g": _free("greeting_generator", answer_style="a pirate's"),
    "c": _free("unicode_customer", customer_name="你好こんにちは", description="会社"),
}
"""What is said, by the letter with which a prompt ends; small letters where no call has to come."""

TEMPLATE = """{%- if tools %}Tools: {{ tools | tojson }}
{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if message.role == "assistant" and loop.last and message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>
{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}
{%- set asked = messages[-1].content | string | lower %}
{%- set named = (tools or []) | map(attribute="function.name") | join(" ") %}<|assistant|>
{%- if messages[-1].role == "tool" %}T
{%- elif "no_args" in named %}N
{%- elif "magic_function" in named %}M
{%- elif "greeting" in named %}G
{%- elif "unicode" in named %}C
{%- elif "weather" in named %}W
{%- elif "joke" in asked %}J
{%- elif "think" in asked %}R
{%- else %}P
{%- endif %}{% endif %}"""
"""A prompt ends with the letter of the script that goes with the tools, or with what was asked."""

FREE = re.sub(r"%}([NMGC])\b", lambda found: f"%}}{found[1].lower()}", TEMPLATE)
"""The same for clients that do not say that a call has to come."""
