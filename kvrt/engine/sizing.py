"""How much memory the KV cache may take, and the page layouts that follow.

Layers that see as far back keep memory alike: each such group has pages of its own, of as many
tokens as those of the others.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from kvrt.config import RuntimeConfig, fit_of
from kvrt.errors import CapacityError
from kvrt.executor.backing import geometry_of
from kvrt.executor.headroom import Headroom
from kvrt.executor.interface import Executor
from kvrt.executor.local import Forward, LocalExecutor
from kvrt.kv.cache import KVCache
from kvrt.kv.limit import LimitChange
from kvrt.kv.pages.geometry import Geometry
from kvrt.model.decoder.activations import Activations, computed_in
from kvrt.model.decoder.predictor import PredictingDecoder
from kvrt.model.decoder.rope import rotation_bytes
from kvrt.model.layouts import layouts_of
from kvrt.model.loader import Model
from kvrt.model.spec import ModelSpec
from kvrt.ranks.executor import RanksExecutor
from kvrt.ranks.joining import shard_of
from kvrt.ranks.starting import Ranks
from kvrt.sharing.tenant import Tenant
from kvrt.spi import ITEM_BYTES, Device, DeviceInfo, DType, KVFormat, PageLayout
from kvrt.units import format_bytes, parse_bytes

log = logging.getLogger(__name__)

FREE_SHARE = 0.6
"""Of the memory that is free after loading, the cache takes at most so much if no limit is given:
the rest is for whoever else is on the machine. Room for the activations is left in any case."""


def limit_bytes(limit: int | str, info: DeviceInfo) -> int:
    if isinstance(limit, int):
        return limit
    return parse_bytes(limit, whole=info.total_bytes)


def too_small(limit: int | str, weights: int, smallest: int) -> CapacityError:
    needed = weights + smallest
    return CapacityError(
        f"a memory limit of {limit if isinstance(limit, str) else format_bytes(limit)} is too "
        f"small: the weights take {format_bytes(weights)}, and the smallest KV cache "
        f"{format_bytes(smallest)} more",
        needed=needed,
        fix=f"give at least {format_bytes(needed)}",
    )


def set_limit(
    cache: KVCache, weights: int, limit: int | str, info: DeviceInfo, revision: int | None = None
) -> LimitChange:
    """Change what weights of so many bytes and a KV cache together may take; from any thread.

    Raises:
        CapacityError: the weights leave no room for a single page.
    """
    kv = limit_bytes(limit, info) - weights
    if kv < cache.page_bytes:
        raise too_small(limit, weights, cache.min_bytes)
    return cache.set_memory_limit(kv, revision)


def step_bytes(config: RuntimeConfig, spec: ModelSpec, computed: DType) -> int:
    """What the largest step computes in: activations of all its tokens, and a row of logits for
    each sequence. Logits of prompts, and what an attention kernel keeps aside, are not counted.

    Args:
        computed: the dtype of activations.
    """
    item = ITEM_BYTES[computed]
    activations = config.max_batch_tokens * Activations.width(spec) * item
    rows = min(config.max_running, config.max_batch_tokens)
    return activations + rows * spec.vocab * (item + ITEM_BYTES["float32"])


def headroom(config: RuntimeConfig, device: Device, model: Model) -> Headroom | None:
    """For the steps of a model; None: the device refuses by itself what it has no memory for."""
    if device.memory.info().others is None:
        return None
    item = ITEM_BYTES[model.decoder.dtype]
    spec = model.shard.kept(model.spec)
    # Beside a row of logits, what orders them: another, and their numbers.
    row = spec.vocab * (item + 2 * ITEM_BYTES["float32"])
    return Headroom(lambda: device.memory.info().free, Activations.width(spec) * item, row)


def page_layouts(
    config: RuntimeConfig, spec: ModelSpec, dtype: DType, computed: DType
) -> list[PageLayout]:
    """The pages of each of a model's `ModelSpec.groups`, with weights of a dtype and activations of
    another."""
    return layouts_of(spec, config.page_size, kv_format(config, dtype), computed)


def kv_format(config: RuntimeConfig, dtype: DType) -> KVFormat:
    """How keys and values are kept, with weights of a dtype; where that has yet to be chosen, in
    the most exact of what may be (`kvrt.engine.planning.fitted`)."""
    named = config.kv_cache_dtype
    if named == "auto" or fit_of(named) is not None:
        return dtype
    return cast(KVFormat, named)


def drafter_layouts(config: RuntimeConfig, drafter: Model) -> list[PageLayout]:
    """Those of a model that drafts."""
    return page_layouts(config, drafter.spec, drafter.dtype, drafter.decoder.dtype)


def smallest_bytes(shapes: Iterable[Geometry]) -> int:
    """What a cache with a page of each group takes."""
    return sum(shape.chunk_bytes * shape.min_chunks for shape in shapes)


def check_room(
    config: RuntimeConfig,
    device: Device,
    spec: ModelSpec,
    dtype: DType,
    weights: int,
    drafter: Model | None = None,
) -> int:
    """Before weights of so many bytes are loaded: a limit has room for them and a smallest cache.

    Args:
        drafter: a model that drafts, which is loaded.

    Returns:
        Bytes of that cache.

    Raises:
        CapacityError: it has not.
        ConfigError: the device does not keep keys and values as they are wanted.
    """
    spec = shard_of(config).kept(spec)
    layouts = page_layouts(config, spec, dtype, computed_in(dtype, device.info))
    if drafter is not None:
        layouts += drafter_layouts(config, drafter)
        weights += drafter.weight_bytes
    room = smallest_bytes(geometry_of(layout, device.info, pages=2) for layout in layouts)
    limit = config.memory_limit
    if limit is not None and limit_bytes(limit, device.info) < weights + room:
        raise too_small(limit, weights, room)
    return room


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """What a KV cache is made of, and what it has to leave free.

    Args:
        layouts: the pages of each group of layers.
        pages: of each group, that addresses are reserved for, the null page included.
        shapes: pages over the device's chunks.
        step: bytes that the largest step may compute in.
    """

    layouts: list[PageLayout]
    pages: int
    shapes: list[Geometry]
    step: int

    def limit(self, free: int) -> int:
        """How much the cache may take of so many bytes that are free after loading, where nothing
        else is asked for."""
        span = sum(shape.span_bytes for shape in self.shapes)
        return min(span, int(free * FREE_SHARE), free - self.step)


def cache_sizes(
    config: RuntimeConfig,
    info: DeviceInfo,
    spec: ModelSpec,
    dtype: DType,
    computed: DType,
    positions: int,
    free: int,
    drafter: Model | None = None,
) -> CacheSizes:
    """The sizes of a model's KV cache.

    Args:
        dtype: of the weights.
        computed: of activations.
        positions: the longest prompt and output together.
        free: bytes of the device's memory, after loading.
        drafter: a model that drafts, whose groups are behind the model's own.

    Raises:
        ConfigError: the device does not keep keys and values as they are wanted.
    """
    layouts = page_layouts(config, spec, dtype, computed)
    if drafter is not None:
        layouts += drafter_layouts(config, drafter)
    # Addresses cost nothing: reserve what the device could ever hold, so that limits can grow.
    pages = -(-positions // config.page_size) * config.max_running + 1
    shapes = [geometry_of(layout, info, pages) for layout in layouts]
    held = positions
    if not spec.groups[0].window:  # of others, memory does not say how long a text can be
        held = min(held, free // layouts[0].page_bytes * config.page_size)
    step = step_bytes(config, spec, computed)
    step += sum(rotation_bytes(rope.width(spec.head_dim), held) for rope in spec.ropes)
    return CacheSizes(layouts, pages, shapes, step)


def make_cache(
    config: RuntimeConfig,
    device: Device,
    model: Model,
    tenant: Tenant | None = None,
    drafter: Model | None = None,
    ranks: Ranks | None = None,
) -> tuple[Executor, KVCache]:
    """Size the KV cache: its page layouts, the ranges it reserves, and how much of it may be used.

    Args:
        model: whose `weight_bytes` are all that is loaded.
        tenant: of a device that is shared.
        drafter: a model that drafts.
        ranks: several, each of which has pages of its part of the model.

    Returns:
        What runs the model over its pages, and the cache that keeps them, which closes it.
    """
    info, spec = device.info, model.shard.kept(model.spec)
    free = device.memory.info().free
    if ranks is not None:
        free = ranks.loaded(model, free)
    sizes = cache_sizes(
        config, info, spec, model.dtype, model.decoder.dtype, model.max_model_len, free, drafter
    )
    groups = [*spec.groups, *(drafter.spec.groups if drafter else ())]
    step = sizes.step
    if config.memory_limit is None:
        limit = sizes.limit(free)
    else:
        limit = limit_bytes(config.memory_limit, info) - model.weight_bytes
        if min(limit, sum(shape.span_bytes for shape in sizes.shapes)) > free - step:
            log.warning(
                "of %s that are free, a memory limit of %s leaves %s to compute in, and a step of"
                " %d tokens may need %s: steps will be smaller",
                format_bytes(free), config.memory_limit, format_bytes(max(0, free - limit)),
                config.max_batch_tokens, format_bytes(step),
            )  # fmt: skip
    smallest = smallest_bytes(sizes.shapes)
    if limit < smallest:
        if config.memory_limit is None:
            raise CapacityError(
                f"no memory is left for the KV cache: of {format_bytes(free)} that are free, a step"
                f" of {config.max_batch_tokens} tokens may need {format_bytes(step)}",
                needed=smallest + step,
                free=free,
                fix="lower max_batch_tokens, or take a smaller model",
            )
        raise too_small(config.memory_limit, model.weight_bytes, smallest)
    drafts: Forward | None = None if drafter is None else drafter.decoder.forward
    if isinstance(model.decoder, PredictingDecoder):
        drafts = model.decoder.predict
    executor: Executor
    executor = own = LocalExecutor(
        device,
        sizes.layouts,
        sizes.pages,
        model.decoder.forward,
        drafter=drafts,
        drafted_groups=len(groups) - spec.own_groups,
        shared=spec.predictor is not None,
        poison=config.debug,
        tenant=tenant,
        headroom=headroom(config, device, model),
        drafting_headroom=None if drafter is None else headroom(config, device, drafter),
    )
    if ranks is not None:
        keys = kv_format(config, model.dtype)
        executor = RanksExecutor(own, ranks.others, ranks.split, keys, sizes.pages)
    cache = KVCache(
        executor,
        limit_bytes=limit,
        keep_warm_bytes=config.keep_warm,
        windows=[(group.reach(config.page_size), 0) for group in groups],
        step_tokens=config.max_batch_tokens,
    )
    return executor, cache
