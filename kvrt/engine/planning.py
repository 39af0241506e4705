"""What fits in a device's memory: how many texts of a length at once, beside a model's weights.

It is reckoned as a runtime does that is given no memory limit: see `kvrt.engine.sizing`.
"""

from dataclasses import dataclass, replace

from kvrt.config import RuntimeConfig
from kvrt.engine.sizing import CacheSizes, cache_sizes
from kvrt.kv.pages.group import Group
from kvrt.model.choice import Choice
from kvrt.model.decoder.activations import computed_in
from kvrt.spi import DeviceInfo


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's weights and KV cache in a device's memory.

    Args:
        weights: bytes of the weights.
        free: bytes that are free before loading.
        sizes: of the cache.
        groups: of layers that see as far back.
        step_tokens: computed in a step, at most.
    """

    weights: int
    free: int
    sizes: CacheSizes
    groups: tuple[Group, ...]
    step_tokens: int

    @property
    def kv(self) -> int:
        """Bytes that are left for keys and values."""
        return max(0, self.sizes.limit(self.free - self.weights))

    def text_bytes(self, length: int) -> int:
        """Memory that a text takes when it is so long, in whole pages."""
        return sum(group.most(length, 1) * group.geometry.page_bytes for group in self.groups)

    def texts(self, length: int) -> int:
        """How many texts can be so long at once. None of them has a page in common with another."""
        few, many = 0, self.kv // self.text_bytes(length) + 1
        while many - few > 1:
            half = (few + many) // 2
            few, many = (half, many) if self._needed(half, length) <= self.kv else (few, half)
        return few

    def _needed(self, texts: int, length: int) -> int:
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
    """What fits where so many bytes of a device are free.

    Raises:
        ConfigError: the device does not keep keys and values as they are wanted.
    """
    spec = choice.spec
    weights = choice.weight_bytes
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
