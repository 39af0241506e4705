"""The pages that users read, taken apart: their blocks of code, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
RECORDS = ("CHANGELOG.md", "docs/benchmarks/")
"""Speak of their own time."""

SHELLS = ("sh", "bash", "console", "shell")
OURS = ("kvrt", "pip", "make", "pytest", "python", "curl", "npm")
"""Programs whose arguments can be held against something here: what begins with them is a command
also in a block that does not say what it is. So does what begins with ci/ or $."""

SEPARATORS = re.compile(r"[|&;()<>]+")
EXPLAINED = re.compile(r"""((?:[^"'\s]|"[^"]*"|'[^']*'|\s(?!\s))+?)\s{2,}[^-\s\\"'#].*""")
"""A command, and behind a gap what it does."""


@dataclass(frozen=True)
class Block:
    """A block of code: of which page, at which line, in which language ("" if it does not say)."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELLS or (
            not self.language and any(map(begins_command, self.text.splitlines()))
        )


@dataclass(frozen=True)
class Command:
    """A program and its arguments, as a shell would give them."""

    where: str
    words: tuple[str, ...]


def pages() -> list[Path]:
    """All of Markdown that is ours and kept up to date."""
    folders = ("docs", "examples", "deploy", "clients")
    found = [*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))]
    return [
        page
        for page in sorted(found)
        if not name_of(page).startswith(RECORDS) and "node_modules" not in page.parts
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    return [
        Block(name_of(page), token.map[0] + 1, token.info.split(" ")[0], token.content)
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8"))
        if token.type in ("fence", "code_block") and token.map
    ]


def begins_command(line: str) -> bool:
    words = line.split()
    return bool(words) and (words[0] in (*OURS, "$") or words[0].startswith("ci/"))


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block of a shell. Where lines begin with $, those alone are commands.

    Raises:
        ValueError: a quote is not closed; the message has the place.
    """
    lines = block.text.splitlines()
    typed = any(line.startswith("$ ") for line in lines)
    text, begun = "", block.line
    for number, line in enumerate(lines, block.line):
        if not text:
            if typed and not line.startswith("$ "):
                continue
            begun, line = number, line.removeprefix("$ ")
            if match := EXPLAINED.fullmatch(line):
                line = match[1]
        text += line + "\n"
        if line.endswith("\\"):
            continue
        try:
            words = split(text)
        except ValueError:  # a quote that a later line closes
            continue
        yield from (Command(f"{block.page}:{begun}", part) for part in parts(words))
        text = ""
    if text:
        raise ValueError(f"{block.page}:{begun}: a quote is not closed")


def split(text: str) -> list[str]:
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def parts(words: list[str]) -> Iterator[tuple[str, ...]]:
    """The commands of a line: without what they read from, write to, and are set before them."""
    found: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if skip:
            skip = False
        elif not SEPARATORS.fullmatch(word):
            if found or not re.fullmatch(r"[A-Z_]+=.*", word):
                found.append(word)
        elif set(word) & set("<>"):
            skip = True
        else:
            if found:
                yield tuple(found)
            found = []
