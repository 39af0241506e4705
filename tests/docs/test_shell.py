"""Every command on a page runs, as a reader would run it who begins at the top of its page.

What cannot run here says so in the page, with the reason, where readers do not see it (`NOTE` of
pages.py); `python -m tests.docs` prints what runs and what does not. That all of them are commands,
with options that there are, is tested beside (test_commands.py).
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .pages import Block, blocks_in, blocks_of, name_of, pages
from .shell import Shell, Typed, typed

PAGES = {name_of(page): blocks_of(page) for page in pages()}
RUN = [
    page
    for page, blocks in PAGES.items()
    if any(not line.why for block in blocks if block.is_shell for line in typed(block))
]


@pytest.fixture
def shell(furnished: Path, warm: Path, tmp_path: Path) -> Iterator[Shell]:
    folder = tmp_path / "reader"
    shutil.copytree(furnished, folder, symlinks=True)
    with closing(Shell(folder, warm)) as shell:
        yield shell


@pytest.mark.extra
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_one_after_the_other(page: str, shell: Shell) -> None:
    failed = []
    for block in PAGES[page]:
        for note in block.notes:
            if note.kind == "file":
                shell.keep(note.said, block.text)
        for line in typed(block) if block.is_shell else ():
            if not line.why:
                try:
                    shell.type(line)
                except AssertionError as error:
                    failed.append(str(error))
    assert not failed, "\n\n".join(failed)


def test_a_command_that_fails_is_found(shell: Shell) -> None:
    for text in ("kvrt run ./nothing", "kvrt serve ./nothing", "false | cat", "kvrt bench gate no"):
        (line,) = typed(Block("page.md", 1, "sh", text))
        with pytest.raises(AssertionError, match=r"page.md:1: .*\sends with"):
            shell.type(line)


def test_a_note_is_of_the_commands_that_it_names() -> None:
    first, second = blocks_in(
        "<!-- not run (kvrt top): it has\nno end -->\n\n    kvrt top\n    kvrt models\n\n"
        "<!-- file: a.txt -->\n```\ntext\n```\n",
        "page.md",
    )
    assert typed(first) == [
        Typed("page.md:4", "kvrt top\n", "it has no end"),
        Typed("page.md:5", "kvrt models\n"),
    ]
    assert [(note.kind, note.said) for note in second.notes] == [("file", "a.txt")]
    (named,) = blocks_in("<!-- not run (kvrt topp): it has no end -->\n\n    kvrt top\n", "")
    with pytest.raises(ValueError, match="nothing begins with 'kvrt topp'"):
        typed(named)
    with pytest.raises(ValueError, match="no block follows 'it has no end'"):
        blocks_in("<!-- not run: it has no end -->\n\nkvrt top\n", "page.md")
