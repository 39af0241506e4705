"""What the site of mkdocs.yml has beside docs/: pages of the root, a reference of the API."""

import importlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "VERSIONING.md": "versioning.md",
}
REFERENCES = {
    "kvrt": ("The API", "What `import kvrt` brings; examples are in [the guides](../index.md)."),
    "kvrt.client": (
        "The client's API",
        "A server as its users see it: [clients.md](../clients.md).",
    ),
    "kvrt.spi": ("The backend's API", "What a backend is: [backends.md](../backends.md)."),
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked(text, name, page)))
    for module, (title, about) in REFERENCES.items():
        names = sorted(n for n in importlib.import_module(module).__all__ if n[0] != "_")
        text = "\n\n".join([f"# {title}: `{module}`", about, *(f"::: {module}.{n}" for n in names)])
        page = f"api/{module.rpartition('.')[2]}.md"
        files.append(File.generated(config, page, content=text + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    place = page.file.src_uri
    if place in ROOT_PAGES.values() or place.startswith("api/"):
        return markdown
    return linked(markdown, f"docs/{place}", place)


def linked(text: str, source: str, page: str) -> str:
    """Links of a file of the repository, as links of the page that it becomes. What they name that
    is no page, such as a file of code, stays as its name alone."""

    def place(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in path:
            return match[0]
        found = os.path.normpath(PurePosixPath(source).parent / path)
        to = ROOT_PAGES.get(found) or (found[5:] if found.startswith("docs/") else None)
        if to is None or not to.endswith((".md", ".png", ".svg", ".json", ".yml")):
            return words
        return f"{image}[{words}]({os.path.relpath(to, PurePosixPath(page).parent)}{mark}{anchor})"

    # Of a table of options, "[env: ...] [default: ...]" is no link.
    return re.sub(
        r"^\|.*", lambda row: row[0].replace("] [", "] \\["), LINK.sub(place, text), flags=re.M
    )
