"""Chat templates that take long or grow, to be rendered in a process of their own.

`python -m tests.model.hostile_templates` prints a JSON object for each: its name, the error it ends
with, and the processor time it took; and last, the most memory it has had.
"""

import json
import resource
import time
from pathlib import Path

from kvrt.errors import ModelError, RequestError
from kvrt.model.chat.template import ChatTemplate

BIG = "{% set s = 'ab' * 100000 %}"
LAUGHS = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
DEEP = (
    "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}"
)
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}"

COMPILING = {
    "many variables": "".join(f"{{% set v{i} = {i} %}}" for i in range(20_000)),
    "many blocks": "".join(f"{{% block b{i} %}}{{% endblock %}}" for i in range(5_000)),
    "many values": "{{ [" + "1," * 60_000 + "1] }}",
    "much text": "x" * 900_000,
    "deep parentheses": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "deep lists": "{{ " + "[" * 3_000 + "]" * 3_000 + " }}",
    "deep sums": "{{ " + "+".join(["1"] * 20_000) + " }}",
    "deep branches": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "deep loops": "".join(f"{{% for a{i} in [1] %}}" for i in range(25)) + "{% endfor %}" * 25,
    "deep filters": "{{ 1" + "|string" * 3_000 + " }}",
    "a long number": "{{ " + "9" * 5_000 + " }}",
    "a break outside a loop": "{% generation %}{% break %}{% endgeneration %}",
    "a filter that is left out": "{{ ('<a>' * 1000) | striptags }}",
}

RENDERING = {
    "loops": LOOPS + ENDS,
    "loops that write": LOOPS + "x" * 100 + ENDS,
    "loops with tests": "{% for i in range(99999) %}{% for j in range(99999) if false %}" + ENDS,
    "loops over text": BIG + "{% for a in s %}{% for b in s %}" + ENDS,
    "many small loops": BIG + "{% for i in s if false %}{% endfor %}" * 900,
    "a recursive loop": "{% for m in [[[[[]]]]] recursive %}{{ loop([m] * 9999) }}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "text times a number": "{{ 'a' * 3000000000 }}",
    "a number times text": "{% set n = 3000000000 %}{{ n * 'a' }}",
    "a list times a number": "{{ ([0] * 300000000) | length }}",
    "a power": "{{ 10 ** 30000000 }}",
    "powers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "a number as text": "{{ (10 ** 5000) | string }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "zfill": "{{ '1'.zfill(2000000000) }}",
    "expandtabs": "{{ ('\\t' * 9999).expandtabs(99999) }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "many centers": "{{ range(99999) | map('string') | map('center', 100000) | join | length }}",
    "a wide number": "{{ '%3000000000d' % 1 }}",
    "a width that is given": "{{ '%*d' % (2000000000, 1) }}",
    "a filter for a wide number": "{{ '%.3000000000f' | format(1) }}",
    "many fields": BIG + "{{ ('%s' * 9999) % ((s,) * 9999) }}",
    "one field many times": BIG + "{{ ('{0}' * 9999).format(s) }}",
    "a wide field": "{{ '{:3000000000}'.format(1) }}",
    "a field as wide as another": "{{ '{:{}}'.format(1, 3000000000) }}",
    "a map of fields": BIG + "{{ ('{a}' * 9999).format_map({'a': s}) }}",
    "join": BIG + "{{ s | join(s) | length }}",
    "a method to join": BIG + "{{ s.join(s) | length }}",
    "replace": BIG + "{{ s | replace('', s) | length }}",
    "a method to replace": BIG + "{{ s.replace('a', s) | length }}",
    "indent": "{{ ('\\n' * 99999) | indent(99999) | length }}",
    "translate": "{{ ('a' * 1000).translate({97: 'b' * 1000000}) }}",
    "to_bytes": "{{ (1).to_bytes(3000000000, 'big') }}",
    "doubling by +": "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
    "doubling by ~": "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
    "doubling by a block": "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
    "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "a list that holds itself twice, written": LAUGHS + "{% endfor %}{{ ns.x }}",
    "... compared": LAUGHS + "{% endfor %}{{ ns.x == [ns.x] }}",
    "... as JSON": LAUGHS + "{% endfor %}{{ ns.x | tojson }}",
    "an object that holds itself twice": "{% set ns = namespace(x=1) %}{% for i in range(40) %}"
    "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "lists added": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "lists summed": "{{ ([[0]] * 99999) | sum(start=[]) }}",
    "a deep list": DEEP + "{{ ns.x }}",
    "a deep list as JSON": DEEP + "{{ ns.x | tojson }}",
    "wide JSON": "{{ [[[[1]]]] | tojson(indent=3000000000) }}",
    "JSON with long separators": BIG + "{{ range(9999) | list | tojson(separators=(s, s)) }}",
    "slices kept": BIG + "".join(f"{{% set v{i} = s[1:] %}}" for i in range(500)),
    "slices of lists": "{{ range(9) | slice(100000000) | list | length }}",
    "searches": BIG + "{% for i in range(99999) %}{{ 'b' * 99 in s }}{% endfor %}",
    "a search in each value": BIG + "{{ [" + "'bb' in s," * 3_000 + "1] }}",
    "a test of each item": BIG + "{{ ([s] * 4) | select('in', s) | list | length }}" * 99,
    "a test of many items": BIG + "{{ (['bb'] * 50000) | select('in', s) | list | length }}",
    "rounding": "{{ 5 | round(-1000000000) }}",
    "lipsum": "{{ lipsum(n=2000000) }}",
    "a long date": "{{ strftime_now('%9999999d' * 1000) }}",
    "a computed autoescape": "{% autoescape 'a' | center(3000000000) %}{% endautoescape %}x",
}


def end_of(source: str) -> tuple[str, str]:
    """The error that a template ends with, and what it says; "" if it is rendered."""
    try:
        ChatTemplate(source, "file", {}).render([{"role": "user", "content": "hi"}])
    except (ModelError, RequestError) as error:
        return type(error).__name__, str(error)
    return "", ""


def main() -> None:
    # Where a bound is missing, this process ends, not the machine.
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
    for name, source in {**COMPILING, **RENDERING}.items():
        start = time.process_time()
        end, said = end_of(source)
        spent = time.process_time() - start
        print(json.dumps({"name": name, "end": end, "said": said, "seconds": spent}))
    # Of this program alone; what getrusage says begins with the process it was forked from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"kilobytes": int(status["VmHWM"].split()[0])}))


if __name__ == "__main__":
    main()
