"""Chat templates, one for each way of writing calls that models have."""

TURNS = """{% if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == "assistant" and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{%- if m.tool_calls %}CALLS{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
BEGIN{% endif %}"""

WORDS = {
    "NAME": "{{ c.function.name }}",
    "ARGS": "{{ c.function.arguments | tojson }}",
    "COMMA": "{{ ', ' if not loop.first }}",
    "EACH": "{% for k, v in c.function.arguments | items %}",
    "DONE": "{% endfor %}",
    "KEY": "{{ k }}",
    "VALUE": "{{ v if v is string else v | tojson }}",
    "STRING": "{{ 'true' if v is string else 'false' }}",
    "LITERAL": "{{ v | tojson if v is string else v }}",
    "QUOTED": "{{ '<|~|>' + v + '<|~|>' if v is string else v | tojson }}",
    "NUMBER": "{{ loop.index0 }}",
    "IDENTITY": "{{ c.id }}",
    "OPEN": "{{ '{' }}",
    "CLOSE": "{{ '}' }}",
}
"""What stands for parts of the templates below."""

FORMS: dict[str, tuple[str, str, str, str, str]] = {
    "JSON between tags": (
        "json", "", '\n<tool_call>\n{"name": "NAME", "arguments": ARGS}\n</tool_call>', "", "",
    ),
    "a list of JSON": (
        "json", "[TOOL_CALLS][",
        'COMMA{"name": "NAME", "arguments": ARGS, "id": "IDENTITY"}', "]", "",
    ),
    "JSON with the name as its key": (
        "json", "<|calls|>[", 'COMMA{"NAME": ARGS}', "]<|end|>", "",
    ),
    "JSON of a function": (
        "json", "",
        '<|call|>{"type": "x", "function": {"name": "NAME", "arguments": ARGS}}', "", "",
    ),
    "JSON alone": ("json", "", '{"name": "NAME", "parameters": ARGS}', "", ""),
    "arguments before the name": (
        "json", "", '<call>{"arguments": ARGS, "name": "NAME"}</call>', "", "",
    ),
    "a name between markers": (
        "named", "<|calls_begin|>",
        "<|call_begin|>functions.NAME:NUMBER<|args|>ARGS<|call_end|>", "<|calls_end|>", "",
    ),
    "a name in a tag": ("named", "", "<function=NAME>ARGS</function>", "", ""),
    "tags of tags": (
        "tagged", "",
        "\n<tool_call>\n<function=NAME>\nEACH<parameter=KEY>\nVALUE\n</parameter>\nDONE"
        "</function>\n</tool_call>", "", "",
    ),
    "keys and values": (
        "tagged", "",
        "<tool_call>NAME\nEACH<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\nDONE"
        "</tool_call>\n", "", "",
    ),
    "invocations": (
        "tagged", "\n\n<|DSML|calls>\n",
        '<invoke name="NAME">\nEACH<parameter name="KEY" string="STRING">VALUE</parameter>\nDONE'
        "</invoke>\n", "</|DSML|calls>", "<think>\n",
    ),
    "Python": (
        "python", "<|call_start|>[", "COMMANAME(EACHCOMMAKEY=LITERALDONE)", "]<|call_end|>", "",
    ),
    "JSON without quotes": (
        "quoted", "", "<|tool_call>call:NAMEOPENEACHCOMMAKEY:QUOTEDDONECLOSE<tool_call|>", "", "",
    ),
}  # fmt: skip
"""By what they are: the kind; what stands before calls, one of them, what stands behind them; and
what each prompt ends with."""


def _source(before: str, call: str, behind: str, begin: str) -> str:
    for word, meaning in WORDS.items():
        call = call.replace(word, meaning)
    calls = f"{before}{{%- for c in m.tool_calls %}}{call}{{%- endfor %}}{behind}"
    return TURNS.replace("CALLS", calls).replace("BEGIN", begin)


SOURCES = {name: (kind, _source(*parts)) for name, (kind, *parts) in FORMS.items()}
"""By what they are: the kind, and the template."""
