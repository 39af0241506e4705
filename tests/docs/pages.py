"""The pages that users read, taken apart: their blocks of code, and the commands in these."""

import itertools
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
"""Programs whose arguments can be held against something here."""

OTHERS = ("cd", "git", "head", "helm", "kubectl", "install", "podman", "sudo", "vllm")
"""Programs of others. What begins with one of these, with ci/ or $ is a command also in a block
that does not say what it is."""

NOTE = re.compile(r"<!-- (not run|first|file)(?: \(([^)]+)\))?: (.+?) -->", re.DOTALL)
"""What stands before a block, where readers do not see it:

    <!-- not run: why -->             none of its commands is tried
    <!-- not run (kvrt top): why -->  those that begin so are not
    <!-- first: kvrt serve ./chat -->  is typed before its commands are
    <!-- file: small.yaml -->         what it says is in a file of this name when commands are tried
"""

SET = re.compile(r"[A-Z_]+=.*")
"""A variable, for what follows."""

SEPARATORS = re.compile(r"[|&;()<>]+")
EXPLAINED = re.compile(r"""((?:[^"'\s]|"[^"]*"|'[^']*'|\s(?!\s))+?)\s{2,}[^-\s\\"'#].*""")
"""A command, and behind a gap what it does."""


@dataclass(frozen=True)
class Note:
    """See `NOTE`: of a block, or of those of its commands that begin with `of`."""

    kind: str
    of: str
    said: str


@dataclass(frozen=True)
class Block:
    """A block of code: of which page, at which line, in which language ("" if it does not say)."""

    page: str
    line: int
    language: str
    text: str
    notes: tuple[Note, ...] = ()

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
    return blocks_in(page.read_text(encoding="utf-8"), name_of(page))


def blocks_in(text: str, page: str) -> list[Block]:
    """The blocks of a page, by its text and its name.

    Raises:
        ValueError: a note stands before something else.
    """
    found: list[Block] = []
    notes: list[Note] = []
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            notes += [
                Note(kind, of, " ".join(said.split()))
                for kind, of, said in NOTE.findall(token.content)
            ]
            continue
        if token.type in ("fence", "code_block") and token.map:
            language = token.info.split(" ")[0]
            line = token.map[0] + 1
            found.append(Block(page, line, language, token.content, tuple(notes)))
        elif notes:
            raise ValueError(f"{page}: no block follows {notes[0].said!r}")
        notes = []
    return found


def begins_command(line: str) -> bool:
    words = [*itertools.dropwhile(SET.fullmatch, line.split())]
    return bool(words) and (words[0] in (*OURS, *OTHERS, "$") or words[0].startswith("ci/"))


def lines_of(block: Block) -> Iterator[tuple[int, str]]:
    """What is typed into a shell, and at which line of the page: lines that go on in the next one
    together, without what is said about them behind a gap. Where lines begin with $, those alone
    are typed.

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
            split(text)
        except ValueError:  # a quote that a later line closes
            continue
        if text.strip():
            yield begun, text
        text = ""
    if text:
        raise ValueError(f"{block.page}:{begun}: a quote is not closed")


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block of a shell.

    Raises:
        ValueError: as of `lines_of`.
    """
    for number, text in lines_of(block):
        yield from (Command(f"{block.page}:{number}", part) for part in parts(split(text)))


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
            if found or not SET.fullmatch(word):
                found.append(word)
        elif set(word) & set("<>"):
            skip = True
        else:
            if found:
                yield tuple(found)
            found = []
