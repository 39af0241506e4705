"""What comes back of files, batches and models, as values. Times are seconds since 1970."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "cancelling",
    "completed", "failed", "expired", "cancelled",
]  # fmt: skip


class ModelStatus(Struct, frozen=True):
    """What has become of a model; in a server of one, the value alone.

    Args:
        value: ``unloaded``, ``loading``, ``loaded``, ``unloading``, ``sleeping`` or ``failed``.
        bytes, held_bytes: that it needs, and has.
        running, waiting: requests.
        load_seconds: that its last load took.
        expires_at: when it goes if nobody asks for it; None: never, or it is busy.
        device: where it is, in a server of several devices; None: nowhere.
        error: why it failed.
    """

    value: str
    bytes: int | UnsetType = UNSET
    held_bytes: int | UnsetType = UNSET
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    requests_per_second: float | UnsetType = UNSET
    load_seconds: float | UnsetType | None = UNSET
    expires_at: float | UnsetType | None = UNSET
    device: str | UnsetType | None = UNSET
    error: str | UnsetType = UNSET


class Model(Struct, frozen=True):
    """A model, or an adapter, that requests may name.

    Args:
        parent: the model that an adapter changes.
        max_model_len: tokens of its context, once it was loaded.
    """

    id: str
    object: str
    created: int
    owned_by: str
    type: str
    display_name: str
    lifecycle: str
    created_at: str
    parent: str | None
    status: ModelStatus
    max_model_len: int | UnsetType = UNSET


class Ordered(Struct, frozen=True):
    """Something is to become of a model."""

    success: bool
    model: Model


class ModelEvent(Struct, frozen=True):
    """Where a model stands from now on."""

    model: str
    status: ModelStatus


class Models(Struct, frozen=True):
    """All of them."""

    object: str
    data: list[Model]
    has_more: bool
    first_id: str
    last_id: str


class File(Struct, frozen=True):
    """A file of requests, or of answers."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class Counts(Struct, frozen=True):
    """Lines."""

    total: int
    completed: int
    failed: int


class InputDetails(Struct, frozen=True):
    """Of tokens of prompts."""

    cached_tokens: int


class OutputDetails(Struct, frozen=True):
    """Of tokens of answers."""

    reasoning_tokens: int


class BatchUsage(Struct, frozen=True):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Problem(Struct, frozen=True):
    """Why a batch was not begun.

    Args:
        line: of the input, from 1; None: it is about the whole.
    """

    code: str
    message: str
    line: int | None
    param: str | None


class Problems(Struct, frozen=True):
    """All of them."""

    object: str
    data: list[Problem]


class Progress(Struct, frozen=True):
    """How a batch goes on.

    Args:
        seconds: since the server has worked on it.
        lines: that were answered since, with errors or without.
        lines_per_s, tokens_per_s: of those, and of what was said.
        cached: the part of all prompts that was not computed.
        seconds_left: None: it is not known yet.
        energy_j: of the machine's processors, in joules; None: `energy_why`.
        cost: at the server's ``--batch-price``; None: it has none, or the energy is not known.
    """

    seconds: float
    lines: int
    lines_per_s: float
    tokens_per_s: float
    cached: float
    seconds_left: float | None
    energy_j: float | None
    energy_why: str | None
    cost: float | None


class Batch(Struct, frozen=True):
    """A batch as it stands.

    Args:
        progress: None: it is not worked on.
    """

    id: str
    object: str
    endpoint: str
    errors: Problems | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int | None
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    metadata: dict[str, str] | None
    priority: int
    usage: BatchUsage
    progress: Progress | None

    @property
    def over(self) -> bool:
        """Nothing becomes of it any more, unless it is retried."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class BatchPage(Struct, frozen=True):
    """Some batches, the newest first."""

    object: str
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Failure(Struct, frozen=True):
    """A line that has no good answer.

    Args:
        line: its number in the input, from 1.
        custom_id: its name; None: the input is deleted.
        status_code: of its answer; None: it was not answered.
    """

    line: int
    custom_id: str | None
    status_code: int | None
    code: str | None
    message: str
    param: str | None


class FailurePage(Struct, frozen=True):
    """Some of them, in the order of the input."""

    object: str
    data: list[Failure]
    has_more: bool


class Deleted(Struct, frozen=True):
    """Something is gone."""

    id: str
    object: str
    deleted: bool


class Response(Struct, frozen=True):
    """Of a line."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class LineError(Struct, frozen=True):
    """Why a line was not asked."""

    code: str
    message: str


class Answer(Struct, frozen=True):
    """What came of a line.

    Args:
        response: None: it was not asked.
        error: why.
    """

    id: str
    custom_id: str
    response: Response | None
    error: LineError | None

    @property
    def body(self) -> dict[str, Any] | None:
        """Of a good answer; None: there is none."""
        if self.response is None or self.response.status_code >= 300:
            return None
        return self.response.body


class UsageDay(Struct, frozen=True):
    """What a key and a model came to in a day of UTC.

    Args:
        key: empty: lines of batches.
    """

    day: str
    workspace: str
    key: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class Quota(Struct, frozen=True):
    """What a key, or its workspace, may take, and has.

    Args:
        of: ``key`` or ``workspace``.
        period: ``daily`` or ``monthly``.
        measure: ``requests`` or ``tokens``.
    """

    of: str
    name: str
    period: str
    measure: str
    limit: int
    taken: int


class Usage(Struct, frozen=True):
    """Who has taken what.

    Args:
        has_more: there are days that were not sent: ask for fewer.
        kept: whether the server keeps it.
    """

    object: str
    data: list[UsageDay]
    has_more: bool
    kept: bool
    quotas: list[Quota]
