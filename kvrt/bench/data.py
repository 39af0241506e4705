"""What is asked: conversations of one turn or several, drawn from a seed or read from a file.

How many tokens a text has is the target's to say: texts are made of words, and how many tokens a
word is was found out by asking (`kvrt.bench.load.calibrated`).
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvrt.errors import ConfigError

WORDS = """
able about above after again air all also always animal answer around ask back be before began
between big book both boy call came can car change city close cold come could country cut day did
do does down draw each earth eat end enough even every eye face family far father feet few find
fire first follow food form found four from get girl give go good great group grow had hand hard
has have he head help her here high him his home house how idea if in into it just keep kind know
land large last late learn leave left letter life light like line list little live long look made
make man many mean men might mile most mother mountain move much must
""".split()  # noqa: SIM905
BLOCK = 512
"""Tokens that one of a trace's ``hash_ids`` stands for, as of Mooncake's traces."""

LONGEST = 10**7
"""Tokens of a prompt or an answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is said next, and how many tokens the answer shall have, at most."""

    text: str
    new: int


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: its turns follow one another, each after the answer to the last.

    Args:
        system: what stands before all; empty: nothing.
        at: when it begins, in seconds of its trace; None: that is not the data's to say.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers from `least` to `most`, each as likely as the others."""

    least: int
    most: int

    @classmethod
    def read(cls, text: str) -> "Lengths":
        """From ``256`` or ``128-512``.

        Raises:
            ConfigError: it is neither.
        """
        first, dash, last = text.partition("-")
        if not first.isascii() or not first.isdigit() or len(text) > 20:
            raise ConfigError(f"{text!r:.40} is no length", fix="write it as 256 or 128-512")
        if dash and not (last.isascii() and last.isdigit()):
            raise ConfigError(f"{text!r:.40} is no length", fix="write it as 256 or 128-512")
        found = cls(int(first), int(last) if dash else int(first))
        if not 1 <= found.least <= found.most <= LONGEST:
            raise ConfigError(
                f"{text!r:.40} is no length", fix=f"from 1 to {LONGEST}, the smaller one first"
            )
        return found

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.least, self.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How words become tokens: ``tokens = fixed + per_word * words``."""

    per_word: float = 1.0
    fixed: float = 0.0

    def words(self, tokens: int, *, alone: bool = True) -> int:
        """Words that come to so many tokens, together with what the target adds if `alone`."""
        return max(1, round((tokens - (self.fixed if alone else 0.0)) / self.per_word))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Talks without an end, the same for the same seed.

    Args:
        prompt, new: tokens of what is said in each turn, and of each answer.
        turns: of each talk.
        prefixes: so many different beginnings, of which each talk has one; 0: no two talks begin
            alike.
        prefix: tokens of each.
    """

    prompt: Lengths
    new: Lengths
    turns: int = 1
    prefixes: int = 0
    prefix: int = 0

    def talks(self, seed: str, scale: Scale) -> Iterator[Talk]:
        beginnings = random.Random(f"{seed} beginnings")
        shared = [
            words(scale.words(self.prefix, alone=False), beginnings) for _ in range(self.prefixes)
        ]
        rng = random.Random(f"{seed} talks")
        while True:
            turns = tuple(self._turn(rng, scale, first=not number) for number in range(self.turns))
            yield Talk(turns, system=rng.choice(shared) if shared else "")

    def _turn(self, rng: random.Random, scale: Scale, *, first: bool) -> Turn:
        count = scale.words(self.prompt.draw(rng), alone=first)
        return Turn(words(count, rng), self.new.draw(rng))


def words(count: int, rng: random.Random) -> str:
    """A text of so many words."""
    return " ".join(rng.choices(WORDS, k=count))


# --- files ---------------------------------------------------------------------------------------


def read_talks(path: Path, new: Lengths, seed: str, scale: Scale) -> list[Talk]:
    """Talks of a file of JSON lines, each an object with one of

    prompt                        a text
    messages                      as of OpenAI's chats; what the assistant says in them is left out,
                                  since the target answers by itself
    input_length, output_length   numbers of tokens, as of Mooncake's traces, with ``hash_ids`` for
                                  the 512 tokens each that it shares with other lines

    and, if they like, ``timestamp`` (milliseconds) and ``max_tokens``.

    Args:
        new: tokens of answers, where a line does not say.
        seed: of texts that are made.

    Raises:
        ConfigError: it cannot be read, or a line is none of these.
    """
    rng = random.Random(f"{seed} file")
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.append(_talk(f"{path}, line {number}", line, new, seed, scale, rng))
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8") from None
    if not found:
        raise ConfigError(f"{path} has no lines")
    return found


def _talk(where: str, line: str, new: Lengths, seed: str, scale: Scale, rng: random.Random) -> Talk:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is no JSON") from None
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is no object")
    told = entry.get("max_tokens", entry.get("output_length"))
    count = new.draw(rng) if told is None else _number(told, where, "max_tokens")
    at = entry.get("timestamp")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or at < 0):
        raise ConfigError(f"{where}: timestamp is no number of milliseconds")
    seconds = None if at is None else at / 1000
    if isinstance(entry.get("prompt"), str):
        return Talk((Turn(entry["prompt"], count),), at=seconds)
    if isinstance(entry.get("messages"), list):
        return _of_messages(entry["messages"], count, seconds, where)
    if "input_length" in entry:
        return _of_lengths(entry, count, seconds, where, seed, scale, rng)
    raise ConfigError(
        f"{where} says nothing that could be asked", fix="give it prompt, messages or input_length"
    )


def _of_messages(messages: Sequence[Any], new: int, at: float | None, where: str) -> Talk:
    said = []
    for each in messages:
        if not isinstance(each, Mapping) or not isinstance(each.get("content"), str):
            raise ConfigError(f"{where}: messages have a role, and a content that is text")
        said.append((each.get("role"), each["content"]))
    system = "\n".join(text for role, text in said if role in ("system", "developer"))
    turns = tuple(Turn(text, new) for role, text in said if role == "user")
    if not turns:
        raise ConfigError(f"{where}: no message is the user's")
    return Talk(turns, system=system, at=at)


def _of_lengths(
    entry: Mapping[str, Any], new: int, at: float | None, where: str, seed: str, scale: Scale,
    rng: random.Random,
) -> Talk:  # fmt: skip
    length = _number(entry["input_length"], where, "input_length")
    ids = entry.get("hash_ids", [])
    if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
        raise ConfigError(f"{where}: hash_ids are no whole numbers")
    whole = scale.words(length)
    block = scale.words(BLOCK, alone=False)
    parts = [words(block, random.Random(f"{seed} block {each}")) for each in ids]
    text = " ".join(parts).split(" ")[:whole] if parts else []
    text += words(whole - len(text), rng).split(" ") if len(text) < whole else []
    return Talk((Turn(" ".join(text), new),), at=at)


def _number(value: Any, where: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST:
        raise ConfigError(f"{where}: {name} is not a whole number from 1 to {LONGEST}")
    return value
