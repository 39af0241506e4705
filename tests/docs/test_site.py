"""The site that `ci/docs` makes: all links in it, what it asks others for, its search."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import kvrt

from .pages import ROOT

pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


class Page(HTMLParser):
    """What a page has and wants: anchors, links, and files that a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])
        elif tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that SITE names, or a new one, built without a warning."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    pytest.importorskip("material", reason="the group docs is not installed: see ci/docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 60
    return found


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path, pages: dict[Path, Page]) -> None:
    wrong = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the site's root, wherever that is
            continue
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            if ":" in file:
                continue
            target = (path.parent / file).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                wrong.append(f"{path.relative_to(site)}: {link}: no such file")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                wrong.append(f"{path.relative_to(site)}: {link}: no such place")
    assert not wrong, "\n".join(wrong)


def test_no_page_asks_another_server_for_anything(pages: dict[Path, Page]) -> None:
    asked = {link for page in pages.values() for link in page.loaded}
    assert asked
    assert not {link for link in asked if link.startswith(("http:", "https:", "//"))}


def test_the_reference_has_all_that_the_package_brings(site: Path, pages: dict[Path, Page]) -> None:
    names = {f"kvrt.{name}" for name in kvrt.__all__ if name[0] != "_"}
    assert names <= pages[site / "api" / "kvrt.html"].anchors
    assert "kvrt.Runtime.generate" in pages[site / "api" / "kvrt.html"].anchors


def test_the_search_finds_pages_and_names(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    places = {entry["location"] for entry in index}
    assert {"memory.html", "api/kvrt.html#kvrt.Runtime", "cli.html#kvrt-serve"} <= places
