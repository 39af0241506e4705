"""A constraint in llguidance's language, compiled: here, and before that in another process."""

import json

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from kvrt.structured.constraint import Constraint
from kvrt.structured.reasons import reason

WHITESPACE = r" |\r?\n[ \t]{0,40}"
"""Between JSON's tokens: nothing, a space, or a new line and its indent; not more and more."""

LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""What one token may cost is bounded: llguidance's own 15 ms or so. A state takes 2 KB."""


class NotCompiled(Exception):
    """A constraint means nothing, or too much. The reason quotes nothing of it."""


def written(constraint: Constraint) -> str:
    """As llguidance reads it.

    Raises:
        NotCompiled: it is no such thing.
    """
    make = llguidance.LLMatcher
    source = constraint.source
    try:
        match constraint.kind:
            case "json_schema":
                return make.grammar_from_json_schema(
                    source, overrides={"whitespace_pattern": WHITESPACE, "lenient": False}
                )
            case "regex":
                return make.grammar_from_regex(source)
            case "choice":
                choices = " | ".join(map(json.dumps, json.loads(source)))
                return make.grammar_from_lark(f"start: {choices}")
            case "grammar":
                gbnf = "::=" in source
                return make.grammar_from_lark(gbnf_to_lark(source) if gbnf else source)
    except Exception:  # of a converter of texts: any
        raise NotCompiled("it cannot be read") from None


def compiled(grammar: str, tokenizer: llguidance.LLTokenizer) -> llguidance.LLMatcher:
    """A matcher at the beginning, which knows its first tokens.

    Raises:
        NotCompiled: it means nothing, or no text at all.
    """
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    some = any(matcher.compute_bitmask())
    if matcher.is_error():
        raise NotCompiled(reason(matcher.get_error()))
    if not some:
        raise NotCompiled("no text satisfies it")
    return matcher
