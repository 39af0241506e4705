"""Links of pages lead to files and headings that are there."""

import itertools
import re
import tomllib
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

import kvrt

from .pages import ROOT, name_of, pages


def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


@cache
def anchors_of(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub and MkDocs both make them."""
    tokens = tokens_of(page)
    headings = [
        "".join(
            part.content for part in inline.children or () if part.type in ("text", "code_inline")
        )
        for begin, inline in itertools.pairwise(tokens)
        if begin.type == "heading_open"
    ]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def links_of(page: Path) -> list[str]:
    parts = [part for token in tokens_of(page) for part in token.children or ()]
    return [
        str(part.attrs.get("href", part.attrs.get("src")))
        for part in parts
        if part.type in ("link_open", "image")
    ]


def test_links_within_pages_lead_to_what_is_there() -> None:
    wrong, seen = [], 0
    for page in pages():
        for link in links_of(page):
            path, _, anchor = link.partition("#")
            if ":" in path:  # of others: nothing is asked of the network
                continue
            seen += 1
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                wrong.append(f"{name_of(page)}: {link}: no such file")
            elif anchor and target.suffix == ".md" and anchor not in anchors_of(target):
                wrong.append(f"{name_of(page)}: {link}: no such heading")
    assert seen > 100
    assert not wrong, "\n".join(wrong)


def test_every_page_for_users_can_be_reached_from_the_first() -> None:
    found, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in found or page.suffix != ".md" or not page.is_file():
            continue
        found.add(page)
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)]
    lost = {page for page in pages() if page.parent == ROOT / "docs"} - found
    assert not lost


def test_the_package_says_the_version_that_it_is_built_as() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == kvrt.__version__
