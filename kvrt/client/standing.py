"""How a server does right now: what ``/status`` says."""

from msgspec import UNSET, Struct, UnsetType

from kvrt.client.words import ModelStatus


class ServerStanding(Struct, frozen=True):
    """The process.

    Args:
        state: ``ready``, or what it is instead.
        seconds: since it was started.
        places, taken: completions that may be asked for at once, and that are.
        running, waiting: sequences.
        tasks: of its event loop.
    """

    version: str
    state: str
    seconds: float
    places: int
    taken: int
    running: int
    waiting: int
    tasks: int


class ModelStanding(Struct, frozen=True):
    """The model."""

    names: list[str]
    architecture: str
    dtype: str
    weight_bytes: int
    context: int
    layers: int
    device: str
    backend: str
    chats: bool


class Flight(Struct, frozen=True):
    """A request that goes on, or has ended."""

    id: str
    route: str
    key: str
    state: str
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    first_token_seconds: float | None
    tokens_per_second: float | None


class Waiter(Struct, frozen=True):
    """A request that waits.

    Args:
        batch: it is a line of one.
        priority: smaller is served first.
        seconds: since it was submitted.
        why: see `kvrt.engine.queue.Why`.
    """

    id: str
    key: str
    batch: bool
    priority: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    preemptions: int
    why: str


class LinesStanding(Struct, frozen=True):
    """Lines of batches: that are asked, that may be, and whether clients have the KV memory."""

    asked: int
    places: int
    crowded: bool


class CellStanding(Struct, frozen=True):
    """Neighbouring chunks: see `kvrt.kv.picture.Cell`."""

    mapped: int
    used: int
    cached: int
    open: int


class OwnerStanding(Struct, frozen=True):
    """Pages that the requests of a workspace hold: in all, and by cell."""

    owner: str
    used: int
    cells: list[int]


class GroupStanding(Struct, frozen=True):
    """A group of layers: see `kvrt.kv.picture.GroupPicture`."""

    window: int
    page_bytes: int
    used: int
    cached: int
    mapped_chunks: int
    cell_chunks: int
    cells: list[CellStanding]
    owners: list[OwnerStanding]


class TierStanding(Struct, frozen=True):
    """Pages outside the device."""

    name: str
    pages: int
    used_bytes: int
    limit_bytes: int | None


class MemoryStanding(Struct, frozen=True):
    """The KV memory: see `kvrt.kv.stats.CacheStats`."""

    page_bytes: int
    used_pages: int
    cached_pages: int
    cached_bytes: int
    free_pages: int
    retired_pages: int
    mapped_bytes: int
    pooled_bytes: int
    spare_bytes: int
    limit_bytes: int
    asked_bytes: int
    peak_mapped_bytes: int
    maps: int
    unmaps: int
    copies: int
    usage: float
    groups: list[GroupStanding]
    tiers: list[TierStanding]


class NamedStatus(ModelStatus, frozen=True, kw_only=True):
    """What has become of a model, and of which."""

    name: str


class Status(Struct, frozen=True):
    """All of it. A key of role user sees its own requests.

    Args:
        recent: requests that have ended, the newest first.
        queue: the next one first.
        batches: None: this server keeps none.
        model, memory: of a server of several, those of one that is loaded; None: none is.
        models: of such a server.
    """

    server: ServerStanding
    model: ModelStanding | None
    requests: list[Flight]
    recent: list[Flight]
    queue: list[Waiter]
    batches: LinesStanding | None
    memory: MemoryStanding | None
    models: list[NamedStatus] | UnsetType = UNSET
