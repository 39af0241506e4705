"""What fits in a device's memory: how many texts of a length at once, beside a model's weights.

And which format of keys and values it takes, where that is to be chosen by the memory there is.

It is reckoned as a runtime does: see `kvrt.engine.sizing`.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kvrt.config import RuntimeConfig, fit_of
from kvrt.engine.sizing import CacheSizes, cache_sizes, kv_format, limit_bytes
from kvrt.errors import ConfigError
from kvrt.kv.pages.group import Group
from kvrt.model.choice import Choice
from kvrt.model.decoder.activations import computed_in
from kvrt.model.loader import Model
from kvrt.spi import DeviceInfo, DType
from kvrt.units import format_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's weights and KV cache in a device's memory.

    Args:
        weights: bytes of the weights.
        free: bytes that are free before loading.
        sizes: of the cache.
        groups: of layers that see as far back.
        step_tokens: computed in a step, at most.
        asked: bytes that keys and values may take; None: as many as a runtime takes by itself.
    """

    weights: int
    free: int
    sizes: CacheSizes
    groups: tuple[Group, ...]
    step_tokens: int
    asked: int | None = None

    @property
    def kv(self) -> int:
        """Bytes that are left for keys and values."""
        if self.asked is not None:
            return self.asked
        return max(0, self.sizes.limit(self.free - self.weights))

    def text_bytes(self, length: int) -> int:
        """Memory that a text takes when it is so long, in whole pages."""
        return sum(group.most(length, 1) * group.geometry.page_bytes for group in self.groups)

    def texts(self, length: int) -> int:
        """How many texts can be so long at once. None of them has a page in common with another."""
        few, many = 0, self.kv // self.text_bytes(length) + 1
        while many - few > 1:
            half = (few + many) // 2
            few, many = (half, many) if self.needed(half, length) <= self.kv else (few, half)
        return few

    def needed(self, texts: int, length: int) -> int:
        """Bytes of all chunks under so many texts, and under what a step adds to those of layers
        with a window before it takes off what they no longer see."""
        needed = 0
        for group in self.groups:
            shape, kept = group.geometry, group.most(length, 1)
            ahead = min(shape.pages_for(self.step_tokens), shape.pages_for(length) - kept)
            nbytes = (1 + texts * kept + ahead) * shape.page_bytes
            needed += -(-nbytes // shape.chunk_bytes) * shape.chunk_bytes
        return needed


def plan(config: RuntimeConfig, info: DeviceInfo, choice: Choice, free: int) -> Plan:
    """What fits where so many bytes of a device are free, and no memory limit is given.

    Raises:
        ConfigError: the device does not keep keys and values as they are wanted.
    """
    spec = choice.spec
    weights = choice.weight_bytes

    def planned(config: RuntimeConfig) -> Plan:
        sizes = cache_sizes(
            config,
            replace(info, total_bytes=max(free, info.total_bytes)),
            spec,
            choice.dtype,
            computed_in(choice.dtype, info),
            choice.positions,
            max(0, free - weights),
        )
        groups = (
            Group(shape, group.reach(shape.page_size))
            for shape, group in zip(sizes.shapes, spec.groups, strict=True)
        )
        return Plan(weights, free, sizes, tuple(groups), config.max_batch_tokens)

    return _first_fitting(config, info, choice.dtype, choice.positions, planned)[1]


def fitted(
    config: RuntimeConfig,
    info: DeviceInfo,
    free: int,
    model: Model,
    drafter: Model | None = None,
) -> RuntimeConfig:
    """The same with a format of keys and values, where the options leave that open: chosen by the
    memory there is.

    Args:
        free: bytes, beside what was loaded.

    Raises:
        ConfigError: the device does not keep keys and values as they are wanted.
    """
    fit = fit_of(config.kv_cache_dtype)
    if fit is None:
        return config
    spec, asked = model.spec, None
    if config.memory_limit is not None:
        asked = max(0, limit_bytes(config.memory_limit, info) - model.weight_bytes)
    own_groups = [*spec.groups, *(drafter.spec.groups if drafter else ())]

    def planned(config: RuntimeConfig) -> Plan:
        computed, positions = model.decoder.dtype, model.max_model_len
        sizes = cache_sizes(config, info, spec, model.dtype, computed, positions, free, drafter)
        groups = (
            Group(shape, group.reach(shape.page_size))
            for shape, group in zip(sizes.shapes, own_groups, strict=True)
        )
        return Plan(0, free, sizes, tuple(groups), config.max_batch_tokens, asked)

    exact = planned(config)
    chosen, plan = _first_fitting(config, info, model.dtype, model.max_model_len, planned)
    texts = f"{fit.texts} texts" if fit.texts > 1 else "a text"
    wanted = f"{texts} of {model.max_model_len} tokens"
    if plan.needed(fit.texts, model.max_model_len) > plan.kv:
        log.warning(
            "KV pages are kept in %s, and %s take %s even so, of %s that there are: fewer run"
            " together, or shorter ones",
            chosen.kv_cache_dtype, wanted,
            format_bytes(plan.needed(fit.texts, model.max_model_len)), format_bytes(plan.kv),
        )  # fmt: skip
    elif chosen.kv_cache_dtype != kv_format(config, model.dtype):
        log.warning(
            "KV pages are kept in %s: in %s, %s would take %s, of %s that there are",
            chosen.kv_cache_dtype, kv_format(config, model.dtype), wanted,
            format_bytes(exact.needed(fit.texts, model.max_model_len)), format_bytes(exact.kv),
        )  # fmt: skip
    return chosen


def _first_fitting(
    config: RuntimeConfig,
    info: DeviceInfo,
    dtype: DType,
    positions: int,
    planned: Callable[[RuntimeConfig], Plan],
) -> tuple[RuntimeConfig, Plan]:
    """With the most exact format in which what is asked for fits; else with the least exact one."""
    fit = fit_of(config.kv_cache_dtype)
    if fit is None:
        return config, planned(config)
    found: tuple[RuntimeConfig, Plan] | None = None
    for name in _formats(dtype, fit.least):
        trial = replace(config, kv_cache_dtype=name)
        try:
            plan = planned(trial)
        except ConfigError:  # the device does not keep these, or not of such layers
            if found is None:
                raise
            continue
        found = trial, plan
        if plan.needed(fit.texts, positions) <= plan.kv:
            break
    assert found is not None, "the format of the weights is one"
    return found


def _formats(dtype: DType, least: str) -> Iterator[str]:
    """From that of the weights on, each less exact than the one before, and smaller."""
    yield dtype
    for name in ("bfloat16", "int8", "int4"):
        if name != "bfloat16" or dtype == "float32":
            if dtype == least:
                return
            yield name
        if name == least:
            return
