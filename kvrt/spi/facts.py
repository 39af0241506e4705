"""What a backend says of itself and of its devices, and what it is asked when it opens one."""

import enum
from dataclasses import dataclass

from kvrt.spi.layout import DType, KVFormat


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend could be opened here.

    Args:
        available: true if `Backend.open` is expected to work.
        detail: what was found ("1 device, driver 580.65") or what is missing.
        fix: the command or sentence that mends it; empty if available.
        devices: how many devices there are.
        by_name_only: true if nobody should run on it who has not asked for it by its name, e.g.
            because it is slow, unfinished or make-believe: ``--backend auto`` passes it over.
    """

    available: bool
    detail: str
    fix: str = ""
    devices: int = 0
    by_name_only: bool = False


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How to open a device. What does not apply to a device is ignored by it.

    Args:
        threads: host threads for kernels that run on the host; None lets the device choose.
        shareable: chunks can be mapped at several addresses and by other processes, where the
            device can do that; may be slower. kvrt has no call to export one yet, so all it asks
            of a device is that everything else works as ever.
        exact: multiply packed weights with activations as they are, and not rounded to codes of 8
            bits (`PackedMatrices.rounds`); may be slower.
    """

    threads: int | None = None
    shareable: bool = False
    exact: bool = False


class Capability(enum.Enum):
    """A fact about a device.

    Three of them change what is asked for: drafts branch only with TREES, without RAGGED_GRAPHS a
    recorded step is replayed only for one token of each sequence, and layers whose values differ
    from their keys in width need VALUE_WIDTHS. The others are declared facts, which change nothing
    that kvrt does. They tell users what to expect and the kit what to test; without ALIASING a
    chunk that is mapped twice is an error.
    """

    ALIASING = "one chunk may be mapped at several addresses at once"
    ASYNC_COPIES = "copies run beside compute"
    BATCH_INVARIANT = "a token's result has the same bits whatever else is in its batch"
    RAGGED_GRAPHS = "a recorded step serves any batch of as many tokens, branches included"
    VALUE_WIDTHS = "values may be of another width than keys, or their beginning (`KVLayout`)"
    TREES = "a sequence's new tokens may branch (`AttentionBatch.parents`)"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is.

    Args:
        backend: the backend's name.
        index: the device's index within its backend.
        name: the product, as its vendor calls it.
        arch: the instruction set or compute architecture that kernels are chosen by.
        total_bytes: physical memory of the device.
        granularity: bytes of one chunk, the unit of `VirtualMemory.map`; a power of two.
        torch_device: the device string of its tensors, e.g. ``cuda:0``. Torch must know the device
            (its own, or one registered as PrivateUse1) and have the operators of
            `kvrt.testing.operators` there.
        compute_dtypes: dtypes that activations (q, k, v, out) may have, the preferred one first.
        weight_dtypes: dtypes that weights may have.
        kv_formats: formats that KV pages may have.
        capabilities: see `Capability`.
        notes: what a user should be told, e.g. that a slower path serves. ``; fix: `` stands before
            what mends it, if anything does.
        head_dims: sizes of a head that attention can do, of keys and of values; empty: every one.
            A model with another size is refused when it is loaded.
    """

    backend: str
    index: int
    name: str
    arch: str
    total_bytes: int
    granularity: int
    torch_device: str
    compute_dtypes: tuple[DType, ...]
    weight_dtypes: tuple[DType, ...]
    kv_formats: tuple[KVFormat, ...]
    capabilities: frozenset[Capability] = frozenset()
    notes: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
