"""The training text: the running Python's standard library, split once and for all by path.

One document is one module's source, or one `pydoc` help topic. Tests, code tables, vendored and
machine-made files are left out. A document is held out when the hash of its *path* says so, so the
split is the same on every machine and does not move when a file's contents change.
"""

import hashlib
import pydoc_data.topics
import sys
import sysconfig
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

END = "<|endoftext|>"
"""Separates documents; a special token of the tokenizer."""

HELD_OUT_ONE_IN = 20
"""One document of this many is never trained on."""

_SKIPPED_FOLDERS = {
    "__pycache__",
    "encodings",  # tables of code points, not prose or code
    "idle_test",
    "lib2to3",  # removed in Python 3.13
    "pydoc_data",  # its text comes in as help topics, without the escapes
    "site-packages",
    "test",
    "tests",
}
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # written by the build, different everywhere


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the name that decides its side of the split."""

    name: str
    text: str

    @property
    def rank(self) -> int:
        """A number that depends on the name alone: the order and the split come from it."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    @property
    def held_out(self) -> bool:
        return self.rank % HELD_OUT_ONE_IN == 0


def documents() -> list[Document]:
    """Every document of the running Python, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [Document(f"topics/{name}", text) for name, text in pydoc_data.topics.topics.items()]
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if any(part in _SKIPPED_FOLDERS or part.startswith(_SKIPPED_PREFIXES) for part in parts):
            continue
        with tokenize.open(path) as file:  # in the encoding that the source declares
            text = file.read()
        if text.strip():
            found.append(Document("/".join(parts), text))
    return sorted(found, key=lambda document: document.name)


def fingerprint(corpus: Iterable[Document]) -> str:
    """SHA-256 over the names and texts: equal when, and only when, the corpus is the same."""
    digest = hashlib.sha256()
    for document in corpus:
        for part in (document.name, document.text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def held_out_slice(corpus: Iterable[Document], limit: int, per_document: int) -> str:
    """A fixed sample of the held-out text: the start of each document, in order of rank.

    Each part ends at a line's end and holds at most `per_document` characters; the parts are joined
    by `END`, and the whole has at most `limit` characters.
    """
    parts: list[str] = []
    size = 0
    for document in sorted((d for d in corpus if d.held_out), key=lambda d: d.rank):
        part = document.text[:per_document]
        part = part[: part.rfind("\n") + 1] or part
        if size + len(part) + len(END) > limit:
            break
        parts.append(part)
        size += len(part) + len(END)
    return END.join(parts)


def summary(corpus: list[Document]) -> dict[str, object]:
    """What `training.json` says about the corpus."""
    held_out = [d for d in corpus if d.held_out]
    return {
        "python": sys.version.split()[0],
        "sha256": fingerprint(corpus),
        "documents": len(corpus),
        "bytes": sum(len(d.text.encode()) for d in corpus),
        "held_out_documents": len(held_out),
        "held_out_bytes": sum(len(d.text.encode()) for d in held_out),
    }
