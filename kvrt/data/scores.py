"""Numbers on what a row says, by which rows are chosen.

chars, words        of all that it says; prompt_chars, answer_chars, answer_words likewise
turns               messages, the answer counted
repetition          of the answer's runs of four words, the part that it has said before
compression         bytes of the answer when compressed, for each of its own: little where it
                    repeats itself
letters             of characters that are no space, the part that are letters or their marks
language            a code of ISO 639, of all that it says; null where there is too little
language_p          how sure that is, from 0 to 1

Repetition is measured as of the "duplicate n-grams" of Rae et al. 2021, "Scaling Language Models:
Methods, Analysis & Insights from Training Gopher", A.1.1. A row without an answer is measured by
its prompt.
"""

import unicodedata
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from kvrt.data.rows import Row, Score
from kvrt.data.shingles import WORDS
from kvrt.errors import ConfigError

RUN = 4
LEAST_LETTERS = 16
"""Of fewer, no language is told: "hello world" might be any."""

Measure = Callable[[Row], Mapping[str, Score]]


def lengths(row: Row) -> dict[str, Score]:
    """How much it says."""
    answer = row.answer or ""
    words = len(WORDS.findall(answer))
    return {
        "chars": len(row.text()),
        "words": len(WORDS.findall(row.prompt_text)) + words,
        "prompt_chars": len(row.prompt_text),
        "answer_chars": len(answer),
        "answer_words": words,
        "turns": len(row.prompt) + (row.answer is not None),
    }


def quality(row: Row) -> dict[str, Score]:
    """How it says it."""
    text = row.prompt_text if row.answer is None else row.answer
    data = text.encode("utf-8", "surrogatepass")
    shown = [character for character in text if not character.isspace()]
    letters = sum(unicodedata.category(character)[0] in "LM" for character in shown)
    return {
        "repetition": round(repetition(text), 4),
        "compression": round(len(zlib.compress(data)) / len(data), 4) if data else None,
        "letters": round(letters / len(shown), 4) if shown else None,
    }


def repetition(text: str) -> float:
    """Of a text's runs of four words, the part that stood there before, from 0 to 1."""
    words = WORDS.findall(text.casefold())
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def language_teller() -> Measure:
    """Tells the language of rows, one of 97, by py3langid's counts of characters' runs.

    Raises:
        ConfigError: the library is not installed.
    """
    if find_spec("py3langid") is None:
        raise ConfigError("languages are told by py3langid", fix="pip install 'kvrt[data]'")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def language(row: Row) -> dict[str, Score]:
        text = row.text()
        if sum(map(str.isalpha, text)) < LEAST_LETTERS:
            return {"language": None, "language_p": None}
        name, sure = known.classify(text)
        return {"language": str(name), "language_p": round(float(sure), 4)}

    return language
