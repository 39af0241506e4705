"""What docs, docstrings and comments call by its full name is there, under that name."""

import pkgutil
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("kvrt", "cli", "kernels", "backends", "docs", "tests")
NAME = re.compile(r"`(kvrt(?:_\w+)?(?:\.\w+)+)[`(]")
PATH = re.compile(r"`((?:kvrt|cli|kernels|backends|tests|docs|ci)/[\w./-]*\w/?)`")
SOURCES = ("kvrt", "cli", "kernels", "backends")
QUOTED, WORD = re.compile(r"`[^`\n]*`"), re.compile(r"\w+")
OWN = re.compile(r"(?<!`)`([A-Za-z_][\w.]*\w)(?:\(\))?`(?!`)")
OTHERS = {"pydoc", "OffloadingConnector"}
"""Of other projects, which this code speaks of and does not use."""

GROUPS = {"kvrt.backends", "kvrt.readers"}
"""Of entry points: names, and no modules."""


def said(pattern: re.Pattern[str]) -> dict[str, str]:
    """What is said so, and where. Records of benchmarks and changes speak of their own time."""
    files = [*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.*"))]
    return {
        found: str(path.relative_to(ROOT))
        for path in files
        if path.suffix in (".md", ".py")
        and "benchmarks" not in path.parts
        and path.name != "CHANGELOG.md"
        for found in pattern.findall(path.read_text())
    }


def test_modules_and_what_is_in_them_have_the_names_that_prose_calls_them_by() -> None:
    names = said(NAME)
    assert len(names) > 50
    wrong = []
    for name in names.keys() - GROUPS:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            wrong.append(f"{names[name]} speaks of {name}")
    assert not wrong


def test_files_are_where_prose_says() -> None:
    paths = said(PATH)
    assert len(paths) > 20
    wrong = [
        f"{where} speaks of {path}" for path, where in paths.items() if not (ROOT / path).exists()
    ]
    assert not wrong


def test_what_code_says_of_itself_has_names_that_there_are() -> None:
    """In backticks stand names of this code, or of what it uses."""
    texts = {p: p.read_text() for folder in SOURCES for p in (ROOT / folder).rglob("*.py")}
    texts |= {p: p.read_text() for p in (ROOT / "kernels").rglob("*.h")}
    known = {
        word for text in texts.values() for word in WORD.findall(QUOTED.sub(" ", text))
    } | OTHERS
    wrong = [
        f"{path.relative_to(ROOT)} speaks of {name}"
        for path, text in texts.items()
        for name in OWN.findall(text)
        if not known.issuperset(name.split("."))
    ]
    assert not wrong
