"""``/infill``: what stands between a prefix and a suffix, by models that were trained for it
(Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle")."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from kvrt.model.loader import Model
from kvrt.server.errors import Refusal
from kvrt.server.llama.completion import CompletionAsked, CompletionCall, Completions
from kvrt.server.llama.front import Front

PREFIX = ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>",
          "<\uff5cfim▁begin\uff5c>", "<|code_prefix|>")  # fmt: skip
SUFFIX = ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "▁<SUF>",
          "<\uff5cfim▁hole\uff5c>", "<|code_suffix|>")  # fmt: skip
MIDDLE = ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>",
          "<\uff5cfim▁end\uff5c>", "<|code_middle|>")  # fmt: skip
REPOSITORY = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
FILE = ("<|file_sep|>", "<file_sep>")
"""How models call the tokens that stand before these parts."""

ROOM = 256
"""Tokens kept for the answer where a request does not say how many it may have."""


class Extra(msgspec.Struct):
    """Another file."""

    text: str
    filename: str = "tmp"


class InfillAsked(CompletionAsked, kw_only=True):
    """The fields of a request."""

    prompt: str = ""
    input_prefix: str
    input_suffix: str
    input_extra: list[Extra] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Marks:
    """Tokens of a model. The last two may be missing."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None


def marks_of(model: Model) -> Marks:
    """Those that a model has.

    Raises:
        Refusal: it was not trained for this.
    """
    found: list[int | None] = []
    for names in (PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE):
        tokenizer = model.tokenizer
        ids = [] if tokenizer is None else [tokenizer.id_of(name) for name in names]
        found.append(next((each for each in ids if each is not None), None))
    prefix, suffix, middle, *others = found
    if prefix is None or suffix is None or middle is None:
        named = zip(("prefix", "suffix", "middle"), found, strict=False)
        missing = ", ".join(name for name, token in named if token is None)
        raise Refusal(
            HTTPStatus.NOT_IMPLEMENTED, f"the model has no tokens to fill in with: {missing}"
        )
    return Marks(prefix, suffix, middle, *others)


class Infill(Completions):
    """The route's protocol."""

    def __init__(self, front: Front) -> None:
        super().__init__(front, CompletionCall)

    def read(self, body: bytes) -> CompletionCall:
        marks = marks_of(self._front.model)
        asked = self._front.served.fields(body, InfillAsked)
        return self.of(asked, [prompt_of(asked, marks, self._front.model)])


def prompt_of(asked: InfillAsked, marks: Marks, model: Model) -> list[int]:
    """Other files, then what is before the gap, behind it, and the mark of the middle.

    Where that is more than there is room for, the gap's neighbourhood stays: three quarters of it
    before, and one behind; then the end of the other files.
    """
    most = asked.most if asked.most is not None and asked.most >= 0 else ROOM
    prefix, suffix, begun = (
        model.encode(text, special=False) if text else []
        for text in (asked.input_prefix, asked.input_suffix, asked.prompt)
    )
    room = max(1, model.max_model_len - most - len(begun) - 4)
    behind = suffix[: max(room // 4, room - len(prefix))]
    before = _last(prefix, room - len(behind))
    extra = _last(_others(asked.input_extra, marks, model), room - len(behind) - len(before))
    start = [] if model.tokenizer is None else model.encode("", special=True)[:1]
    return [
        *extra, *start, marks.prefix, *before, *begun, marks.suffix, *behind, marks.middle,
    ]  # fmt: skip


def _others(files: Sequence[Extra], marks: Marks, model: Model) -> list[int]:
    def tokens(text: str) -> list[int]:
        return model.encode(text, special=False) if text else []

    made: list[int] = []
    if files and marks.repository is not None:
        made += [marks.repository, *tokens("project\n")]
    for each in files:
        head = [] if marks.file is None else [marks.file, *tokens(f"{each.filename}\n")]
        made += [*head, *tokens(each.text), *tokens("\n")]
    if files and marks.file is not None:
        made += [marks.file, *tokens("filename\n")]
    return made


def _last(tokens: list[int], most: int) -> list[int]:
    return tokens[-most:] if most > 0 else []
