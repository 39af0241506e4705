"""What batches are, as values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Status = Literal[
    "validating", "in_progress", "finalizing", "cancelling",
    "completed", "failed", "expired", "cancelled",
]  # fmt: skip
End = Literal["completed", "expired", "cancelled"]
"""How a batch can end that was begun."""

OVER: frozenset[Status] = frozenset(get_args(End)) | {"failed"}
"""Nothing becomes of these any more, unless their lines are asked again."""

Rank = tuple[float, float]
"""By priority, then by what is to be over first."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a batch failed.

    Args:
        code: for programs.
        message: what is wrong; it quotes nothing of the file.
        line: of the input, from 1; None: it is about the whole.
        param: the field at fault.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """That answers took.

    Args:
        prompt: of the prompts.
        cached: of those; not computed, because their pages were there.
        said: of the answers.
    """

    prompt: int = 0
    cached: int = 0
    said: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.prompt + other.prompt, self.cached + other.cached, self.said + other.said
        )


NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True)
class Kind:
    """What lines have in common that are asked together.

    Args:
        number: what its lines know it by.
        url: the route.
        model: as lines name it; empty: they name none.
    """

    number: int
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch, by its place.

    Args:
        kind: the number of its `Kind`.
        key: lines that begin alike stand together by it.
        number: of the line, from 1.
        at: its first byte in the input.
        size: its bytes.
    """

    kind: int
    key: bytes
    number: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one line.

    Args:
        line: that was asked.
        record: the line of the output.
        good: whether it is one of the output, or of the errors.
    """

    line: Line
    record: bytes
    good: bool
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it stands.

    Args:
        id: its name.
        owner: whose it is.
        endpoint: the route that all lines are for; empty: each says.
        input: name of the file.
        output, errors: names of the files to be.
        window: how long it may take, as it was said.
        created: when, in seconds since the epoch.
        expires: when lines are not asked any more; None: never.
        end: what it is to become, once that is known.
        times: of each status, when it was reached.
        total: lines.
        done, failed: of those.
        fingerprint: of the input, once it was read.
        files_expire: seconds after which its files are deleted; None: never.
        priority: of its owner's, those of a higher one go on first.
        num: its place in the database.
    """

    id: str
    owner: str
    endpoint: str
    input: str
    output: str
    errors: str
    window: str
    created: int
    expires: int | None
    status: Status = "validating"
    end: End | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    problems: Sequence[Problem] = ()
    total: int = 0
    done: int = 0
    failed: int = 0
    tokens: Tokens = NO_TOKENS
    fingerprint: bytes = b""
    files_expire: int | None = None
    priority: int = 0
    num: int = 0

    @property
    def rank(self) -> "Rank":
        """Among the batches of its owner, those of the least go on first."""
        return (-self.priority, math.inf if self.expires is None else self.expires)

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def left(self) -> int:
        """Lines that have no answer."""
        return self.total - self.done - self.failed


@dataclass(frozen=True, slots=True)
class File:
    """A file that a client has sent, or that a batch has made.

    Args:
        id: its name here.
        name: as its owner calls it.
        created, expires: in seconds since the epoch; None: never.
    """

    id: str
    owner: str
    purpose: str
    name: str
    nbytes: int
    created: int
    expires: int | None = None
