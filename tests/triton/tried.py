"""Whether the conformance kit has passed in Triton's interpreter on the kernels that are here.

    python -m tests.triton.tried PAGE           exits with 1 if it has on others only
    python -m tests.triton.tried PAGE --now     writes down that it has on these

The kit takes many minutes there, and what it says hangs on files that seldom change. `ci/kernels`
asks first, and writes down what it has tried: into the page on kernels, as a digest of them.
"""

import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRIED = "<!-- tried by ci/kernels: {} -->"
FOLDERS = ("kernels/kvrt_kernels", "kvrt/spi", "kvrt/testing", "tests/triton/plugin")


def decides() -> Iterable[Path]:
    """The files on which it hangs: kernels, the kit, what runs both, and which tests are run."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "mutants" not in path.parts:
                yield path
    yield ROOT / "ci/kernels"


def digest() -> str:
    """Of those files, and of Triton's version."""
    found = hashlib.sha256()
    for path in decides():
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    (triton,) = re.findall(r"(?m)^triton==.*$", (ROOT / "ci/constraints.txt").read_text())
    found.update(triton.encode())
    return found.hexdigest()[:16]


def main(page: Path, *, now: bool) -> bool:
    """Whether it has been tried, or is from now on."""
    text = page.read_text()
    mark = TRIED.format(digest())
    if now:
        text, count = re.subn(TRIED.format("[0-9a-f]*"), mark, text)
        assert count == 1, f"{page} has no place for it"
        page.write_text(text)
    return mark in text


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), now="--now" in sys.argv[2:]))
