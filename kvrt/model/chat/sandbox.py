"""The surroundings of a chat template: Jinja's immutable sandbox, with what templates expect of it.

A template can read what it is given and nothing else, and what it computes is bounded; see
`kvrt.model.chat.bounds`. What those of the Hugging Face hub want is provided: block trimming, loop
controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that leaves HTML alone, and the
``generation`` tag, which marks an assistant's words for training and means nothing here.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context, pass_environment, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from kvrt.model.chat import bounds
from kvrt.model.chat.bounds import Excess, meter

SOURCE = 1 << 18
TOKENS = 40_000
SCOPES = 1_000
"""The largest template that is compiled: characters, words and signs, and parts that have variables
of their own. They bound the time that takes to about a second. Templates of the hub have some ten
thousand characters."""

SCOPED = (
    nodes.Block,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.For,
    nodes.Macro,
    nodes.Scope,
    nodes.With,
)
LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters that no chat template needs, and that make much of little or take long for it."""

ANY_NUMBER = ("default", "d", "float", "int")
"""Filters whose numbers are values, not widths."""

STRFTIME = 100
INDENT = 16


class Refusal(Exception):
    """What a template says of messages that it does not accept."""


class _MeteredCode(CodeGenerator):
    """Compiles templates so that each statement, and what may be large, goes past the meter."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        super().blockvisit([], frame)  # Python wants a statement where the template has none
        for node in nodes:
            self.writeline(f"environment.spend({_plain_text(node)})")
            super().blockvisit([node], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_all((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._hold(super().visit_Compare, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._hold(super().visit_Dict, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._hold(super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        visit = super().visit_Tuple
        if node.ctx == "load":
            self._hold(visit, node, frame)
        else:
            visit(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        visit = super().visit_Getitem
        if isinstance(node.arg, nodes.Slice):
            self._hold(visit, node, frame)
        else:
            visit(node, frame)

    def _hold(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.hold(")
        visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment to compile and render templates in."""

    code_generator_class = _MeteredCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            # With these, no constant is computed while compiling, however large it would become.
            optimized=False,
            finalize=_written,
        )
        self.binop_table |= {
            "+": bounds.add, "*": bounds.multiply, "**": bounds.power, "%": bounds.fill,
        }  # fmt: skip
        for name in LEFT_OUT:
            del self.filters[name]
        self.filters |= {
            "format": _format, "indent": _indent, "join": _join, "replace": _replace, "sum": _sum,
            "tojson": _tojson,
        }  # fmt: skip
        for table in (self.filters, self.tests):
            for name, function in table.items():
                table[name] = _metered(name, function)
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def read(self, source: str) -> nodes.Template:
        """A template's tree.

        Raises:
            Excess: it is too large to be compiled.
        """
        if len(source) > SOURCE:
            raise Excess(f"it has {len(source):,} characters; at most {SOURCE:,} are read")
        if sum(1 for _ in itertools.islice(self.lex(source), TOKENS + 1)) > TOKENS:
            raise Excess(f"it has more than {TOKENS:,} words and signs")
        tree = self.parse(source)
        if sum(1 for _ in tree.find_all(SCOPED)) > SCOPES:
            raise Excess(f"it has more than {SCOPES:,} loops, macros and blocks")
        return tree

    def render(self, template: Template, variables: dict[str, Any]) -> str:
        """What a template makes of variables.

        Raises:
            Excess: it does more than it may.
        """
        with bounds.metered(variables):
            return template.render(variables)

    # --- what compiled code calls ---------------------------------------------------------------

    def call(
        __self,
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        bounds.check_width(*kwargs.values())
        args = bounds.check_call(__obj, args)
        return meter().hold(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        meter().spend(0)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            bounds.check_format(str(value.__self__), [list(args), kwargs])
            return wrapped(*args, **kwargs)

        return checked

    def spend(self, size: int) -> None:
        """A statement comes, with so many characters that stand in the template."""
        meter().spend(size)

    def hold(self, value: Any) -> Any:
        """An expression was computed that can be large, or take long."""
        return meter().hold(value)

    def concat_all(self, parts: Sequence[Any]) -> str:
        """``a ~ b ~ c``"""
        return str_join(bounds.joined("", parts))


def _plain_text(node: nodes.Node) -> int:
    """Characters that a statement writes as they stand in the template."""
    if not isinstance(node, nodes.Output):
        return 0
    return sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))


@pass_context
def _written(context: Context, value: Any) -> Any:
    """A value as it is written."""
    meter().spend(meter().size_of(value))
    return value


def _metered(name: str, function: Any) -> Any:
    """A filter or test whose result is counted."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        if name not in ANY_NUMBER:
            bounds.check_width(*args, *kwargs.values())
        return meter().hold(function(*args, **kwargs))

    return metered


# --- filters --------------------------------------------------------------------------------------


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("positions or names, not both")
    filled: str = bounds.fill(str(text), kwargs or args)
    return filled


def _indent(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
    bounds.check_indent(text, width)
    return FILTERS["indent"](text, width, first, blank)


@pass_eval_context
def _join(context: EvalContext, value: Any, d: Any = "", attribute: Any = None) -> Any:
    return FILTERS["join"](context, bounds.joined(d, value), d, attribute)


@pass_eval_context
def _replace(context: EvalContext, text: Any, old: Any, new: Any, count: Any = None) -> Any:
    bounds.check_replace(text, old, new)
    return FILTERS["replace"](context, text, old, new, count)


@pass_environment
def _sum(environment: Sandbox, items: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TypeError("only numbers are summed")
    return FILTERS["sum"](environment, items, attribute, start)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if (len(indent) if isinstance(indent, str) else indent or 0) > INDENT:
        raise Excess("it makes something too wide")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None and separators is None:
        return encoder.encode(value)
    parts = []
    for part in encoder.iterencode(value):
        meter().spend(len(part))
        parts.append(part)
    return "".join(parts)


# --- what else there is ---------------------------------------------------------------------------


class _Namespace(Namespace):
    """One that does not write out what is in it, which may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` renders what is inside, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way to declare tags)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(str(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > STRFTIME:
        raise Excess("it makes something too wide")
    return datetime.now().strftime(layout)
