"""What chat templates may cost, whatever they are; and what they compute is still the same."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvrt.errors import KvrtError, ModelError
from kvrt.model.chat import bounds
from kvrt.model.chat.template import ChatTemplate
from tests.model.checkpoints import save_tokenizer
from tests.model.hostile_templates import COMPILING, RENDERING

SECONDS = 3.0
MEBIBYTES = 200
ROOT = Path(__file__).parents[2]
HI = [{"role": "user", "content": "hi"}]


def test_no_template_takes_long_or_much_memory() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.model.hostile_templates"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    *templates, whole = map(json.loads, ran.stdout.splitlines())
    assert [entry["name"] for entry in templates] == [*COMPILING, *RENDERING]
    for entry in templates:
        assert entry["seconds"] < SECONDS, entry
        assert entry["end"] in ("ModelError", "RequestError"), entry
        assert "MemoryError" not in entry["said"], f"{entry}: no bound ended it"
    assert whole["kilobytes"] < MEBIBYTES << 10


SAME = [
    "{{ 'a' * 3 }}{{ 3 * [1, 'b'] }}{{ 2 * 3 }}{{ 1.5 * 2 }}{{ [] * 2 }}{{ 'a' * -1 }}",
    "{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 1.5 ** 2 }}{{ 7 % 3 }}{{ -7 // 2 }}{{ 7 / 2 }}{{ 3 - 1 }}",
    "{{ '%s: %05d %.2f%%' % ('x', 7, 1.5) }}{{ '%(a)s' % {'a': [1]} }}{{ '%-5s|' | format('x') }}",
    "{{ '{0:>5}|{a!r}|{0}'.format('x', a='y') }}{{ '{a}{{}}'.format_map({'a': 1}) }}",
    "{{ 'a' ~ 1 ~ none ~ [1] }}{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 1 + 2 }}{{ (1, 2) + (3,) }}",
    "{{ messages[0]['content'][1:] }}{{ messages[1:] }}{{ messages[::-1] | length }}",
    "{{ [1, 2] | join(', ') }}{{ messages | join('-', attribute='role') }}{{ 'ab' | join(d='.') }}",
    "{{ ', '.join(['a', 'b']) }}{{ 'aba'.replace('a', 'c', 1) }}{{ 'aba' | replace('a', 'cc') }}",
    "{{ 'aba' | replace('a', 'c', count=1) }}{{ 'a\nb' | indent }}{{ 'a\nb' | indent(2, true) }}",
    "{{ 'a\nb' | indent(width='> ') }}{{ 'a'.center(5) }}{{ 'a' | center(5) }}{{ 'a'.zfill(3) }}",
    "{{ 'a\tb'.expandtabs() }}{{ 'a\tb'.expandtabs(4) }}{{ 'A b'.title().swapcase() }}",
    "{{ [1, 2.5] | sum }}{{ [{'n': 2}] | sum(attribute='n') }}{{ [3, 1] | sort | first }}",
    "{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "{{ {'a': 'é<'} | tojson }}{{ {'b': 1} | items | list }}{{ {'a': 1}.items() | list }}",
    "{% for x in [1, 2, 3] if x is odd %}{{ loop.index }}/{{ loop.length }}{{ x }}{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}{% for a, b in [(1, 2)] %}{{ b }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}"
    "{% endif %}{% endfor %}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}"
    "{% endif %}{{ x }}{{ loop.previtem }}{% endfor %}",
    "{% macro f(a, b='c') %}<{{ a }}{{ b }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}"
    "{% call f(2, b=3) %}in{% endcall %}{{ f('a') | upper }}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x | length }}{% filter upper %}b{{ x }}{% endfilter %}",
    "{% set n = namespace(a=1) %}{% for x in [1, 2] %}{% set n.a = n.a + x %}{% endfor %}{{ n.a }}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ dict(a=1).a }}{{ 'x' if a is defined else 'y' }}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user')"
    " | list | length }}{{ messages | rejectattr('content') | list }}{{ 'b' in 'abc' }}",
    "{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2, 3] | slice(2) | list }}",
    "{{ [1, 1] | unique | list }}",
    "{{ missing | default(10000000) }}{{ '5' | int(default=9999999) }}{{ 2.6 | round | int }}",
    "{{ not 1 }}{{ 1 < 2 < 3 }}{{ 'a' in ['a'] and 'b' or 'c' }}{{ -1 }}{{ 1 == 1.0 }}",
    "{{ '<&>' | e }}{{ 'a b' | urlencode }}{{ ' a ' | trim }}{{ 'abc' | truncate(2, true, '') }}",
    "{{ messages[-1].content.split('i') }}{{ 'a\nb'.splitlines() }}{{ 'é'.encode('utf-8') }}",
    "{{ cycler('a', 'b').next() }}{{ [[1, 'a'], [2, 'a']] | groupby(1) | length }}",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tokenizer(tmp_path_factory.mktemp("t"), tokenizer_class="TokenizersBackend")
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("source", SAME)
def test_what_templates_compute_is_the_same_as_in_transformers(reference: Any, source: str) -> None:
    messages = [*HI, {"role": "assistant", "content": "hi there"}]
    want = reference.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(source, "t", {}).render(messages) == want


def test_a_product_is_as_long_as_both_its_factors_whichever_is_first() -> None:
    number = "{% set a = 2 ** 2047 %}{% set b = a * a %}{% set n = b * b %}"  # of 8,189 bits
    for product in ("n * 7", "7 * n"):
        assert ChatTemplate(number + "{{ " + product + " > n }}", "t", {}).render(HI) == "True"
    for product in ("n * 8", "8 * n", "n * n"):
        with pytest.raises(ModelError, match="too large numbers"):
            ChatTemplate(number + "{{ " + product + " > n }}", "t", {}).render(HI)


def test_what_is_allowed_grows_with_what_is_given() -> None:
    writes = "{% for m in messages %}{{ m.content }}{{ m.content | trim | upper }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 1000}] * 5000
    assert len(ChatTemplate(writes, "t", {}).render(messages)) == 10_000_000


def test_a_rendering_that_was_stopped_costs_later_ones_nothing() -> None:
    template = ChatTemplate(RENDERING["loops that write"], "t", {})
    good = ChatTemplate("{{ messages[0].content }}", "t", {})
    for _ in range(3):
        with pytest.raises(ModelError, match="t: chat template is not safe: it makes too much"):
            template.render(HI)
        assert good.render(HI) == "hi"


def test_renderings_in_several_threads_are_bounded_each_by_itself() -> None:
    hostile = ChatTemplate(RENDERING["loops"], "t", {})
    good = ChatTemplate("{% for i in range(999) %}{{ messages[0].content }}{% endfor %}", "t", {})
    ends: list[str] = []

    def render(template: ChatTemplate) -> None:
        try:
            ends.append(template.render(HI)[:2])
        except KvrtError as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=render, args=(t,)) for t in (hostile, good, hostile, good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["ModelError", "ModelError", "hi", "hi"]


def test_nothing_is_computed_while_a_template_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(bounds.Meter, "spend", lambda meter, size: spent.append(size))
    template = ChatTemplate(
        "{{ 'a' * 9 }}{{ 'a' | center(9) }}{{ 'a' ~ 'b' }}{{ 2 ** 9 }}", "t", {}
    )
    assert spent == []
    template.render(HI)
    assert spent
