"""vLLM's words for what became of cached blocks, and kvrt's pages in them.

The structures are those of vLLM 0.32's ``distributed/kv_events.py``, as msgpack: a batch is an
array, an event a map with its class's name as ``type``. A block is what kvrt calls a page. Its hash
is, as there, the last 64 bits of a SHA-256; it is no hash that vLLM would compute.
"""

from collections.abc import Sequence

from msgspec import Struct

from kvrt.kv.index.events import CacheEvent
from kvrt.kv.tiers.names import PageName, tenant_of

MEDIUM = "GPU"
"""What vLLM calls the device's own memory, whatever the device."""


class BlockStored(Struct, tag=True, omit_defaults=True, gc=False):
    """Blocks that come one after the other can be reused from now on.

    Args:
        block_hashes: of each.
        parent_block_hash: of the one before them; None: they begin a prompt.
        token_ids: of all of them.
        block_size: tokens in a block.
        lora_id: there are no adapters.
        medium: where they are.
        lora_name: there are no adapters.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class BlockRemoved(Struct, tag=True, omit_defaults=True, gc=False):
    """Blocks cannot be reused any more."""

    block_hashes: list[int]
    medium: str | None


class AllBlocksCleared(Struct, tag=True, omit_defaults=True, gc=False):
    """No block can be reused any more."""


BlockEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(Struct, array_like=True, omit_defaults=True, gc=False):
    """What one message says.

    Args:
        ts: seconds since 1970.
        events: in the order in which they happened.
        data_parallel_rank: of the engine among its copies.
    """

    ts: float
    events: list[BlockEvent]
    data_parallel_rank: int | None = None


def block_hash(key: bytes) -> int:
    """What a page of this key is called."""
    return int.from_bytes(key[-8:], "big")


def block_events(events: Sequence[CacheEvent], since: int, root: bytes) -> list[BlockEvent]:
    """Events of pages in vLLM's words, those that go together as one.

    Args:
        events: at least one.
        since: the number of the last one before. If some between are forgotten, it is said first
            that no block is left: those that are will be missed, and none is believed in that went.
        root: the key before a prompt's first page. Pages of prompts with another one, which have a
            ``cache_salt``, are left out: they are nobody's but their tenant's.
    """
    said: list[BlockEvent] = [AllBlocksCleared()] if events[0].number > since + 1 else []
    last: PageName | None = None
    for event in events:
        name = event.name
        if name is None:
            said.append(AllBlocksCleared())
            continue
        if name.tenant != tenant_of(root):
            continue
        before, hashed = said[-1] if said else None, block_hash(name.key)
        if event.kind == "removed":
            if isinstance(before, BlockRemoved):
                before.block_hashes.append(hashed)
            else:
                said.append(BlockRemoved([hashed], MEDIUM))
            continue
        if isinstance(before, BlockStored) and last is not None and last.key == name.parent:
            before.block_hashes.append(hashed)
            before.token_ids.extend(name.tokens)
        else:
            parent = None if name.parent == root else block_hash(name.parent)
            tokens = [*name.tokens]
            said.append(BlockStored([hashed], parent, tokens, len(tokens), None, MEDIUM, None))
        last = name
    return said
