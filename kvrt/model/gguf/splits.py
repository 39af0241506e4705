"""How text is cut before byte-pair encoding, by the names that ``tokenizer.ggml.pre`` has.

The patterns are those of the models' own tokenizers, which GGUF files only name. Cut otherwise,
text becomes other tokens than the model was trained with, and still reads well; so a name that is
not known is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TAILS = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_GPT2 = rf"{_TAILS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CHINESE_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, letters: str = r"\p{L}", others: str = r"[^\s\p{L}\p{N}]") -> str:
    return rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{others}+[\r\n]*|{_ENDS}"


def _cased(tails: str, digits: str) -> str:
    begin = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{begin}{_UPPER}*{_LOWER}+{tails}|{begin}{_UPPER}+{_LOWER}*{tails}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
    )


@dataclass(frozen=True, slots=True)
class Split:
    """One way of cutting text.

    Args:
        patterns: each cuts what the one before left, into what it matches and what is between.
        whole: a piece that is a token is taken whole, whatever the merges make of it.
        begins: texts begin with a token for the beginning, where no key says.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False


_DIGITS = Split((r"\p{N}", _GPT2))
_PLAIN = Split((_GPT2,))
_LLAMA = (_words(r"\p{N}{1,3}"),)
_QWEN = Split((_words(r"\p{N}"),))

SPLITS: Mapping[str, Split] = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
         "gigachat", "mellum", "a.x-4.0"),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _DIGITS,
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        Split(_LLAMA, whole=True, begins=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), Split(_LLAMA)),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan",
         "solar-open", "grok-2"),
        _QWEN,
    ),
    "qwen35": Split((_words(r"\p{N}", r"[\p{L}\p{M}]", r"[^\s\p{L}\p{M}\p{N}]"),)),
    "tekken": Split((_cased("", r"\p{N}"),), whole=True, begins=True),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2"), Split((_cased(f"(?:{_ANY_CASE})?", r"\p{N}{1,3}"),))
    ),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": Split(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST, r"\p{N}")
    ),
    "deepseek-v3": Split(
        (
            r"\p{N}{1,3}",
            _CHINESE_JAPANESE,
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_ENDS}",
        )
    ),
}  # fmt: skip
