"""Which part of a model a rank has, where several compute one together.

    rank = stage * parts + part          parts = 2, stages = 2

    layers 0 .. n/2      rank 0: heads, rows 0 .. 1/2     rank 1: heads, rows 1/2 .. 1
    layers n/2 .. n      rank 2                           rank 3

Every matrix is cut by rows, those behind attention and behind the feed-forward layer too: each
output element is computed by one rank, from all of its inputs, as one process would compute it. So
an answer's bits do not depend on the number of ranks (docs/design/ranks.md). Unless it need not be
exact: then these two matrices are cut by columns, and what ranks make of their parts is added up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kvrt.errors import ConfigError
from kvrt.model.spec import ModelSpec
from kvrt.spi import Collective


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's part.

    Args:
        part, parts: of each layer of its stage.
        stage, stages: of the layers.
        exact: every number has the bits that it has on one rank.
    """

    part: int = 0
    parts: int = 1
    stage: int = 0
    stages: int = 1
    exact: bool = True

    @property
    def rank(self) -> int:
        return self.stage * self.parts + self.part

    @property
    def ranks(self) -> int:
        return self.parts * self.stages

    @property
    def is_first(self) -> bool:
        """Whether its stage embeds tokens."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether its stage makes logits."""
        return self.stage == self.stages - 1

    def of_rank(self, rank: int) -> "Shard":
        """That of another rank."""
        return replace(self, part=rank % self.parts, stage=rank // self.parts)

    def span(self, count: int) -> range:
        """Which of so many rows it has. Parts differ by one row at most."""
        return range(count * self.part // self.parts, count * (self.part + 1) // self.parts)

    def spans(self, count: int) -> list[range]:
        """Those of all parts."""
        return [replace(self, part=part).span(count) for part in range(self.parts)]

    def layers(self, count: int) -> range:
        """Which of so many layers it has."""
        return range(count * self.stage // self.stages, count * (self.stage + 1) // self.stages)

    def kv_heads(self, count: int) -> range:
        """Which of so many key and value heads it has: of fewer heads than parts, one, as others
        do."""
        if count >= self.parts:
            return self.span(count)
        own = self.part * count // self.parts
        return range(own, own + 1)

    def local(self, spec: ModelSpec) -> ModelSpec:
        """The shape of what the rank computes. Its residual stream and logits are whole."""
        own = self.layers(len(spec.layers))
        return self._narrowed(spec, spec.layers[own.start : own.stop])

    def kept(self, spec: ModelSpec) -> ModelSpec:
        """The shape whose pages all ranks have. Those of a stage with fewer layers of a group than
        others have room that is not used: pages of all ranks are of one size, and so are the
        numbers of chunks and pages in a plan."""
        if self.stages == 1:
            return self.local(spec)
        stages = [self.of_rank(stage * self.parts) for stage in range(self.stages)]
        layers = tuple(
            spec.layers[group.layers[0]]
            for group in spec.groups
            for _ in range(max(len(own.of_group(spec, group.layers)) for own in stages))
        )
        return self._narrowed(spec, layers)

    def of_group(self, spec: ModelSpec, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Of some layers those that it has, counted from its own first one."""
        own = self.layers(len(spec.layers))
        return tuple(layer - own.start for layer in layers if layer in own)

    def _narrowed(self, spec: ModelSpec, layers: tuple[Any, ...]) -> ModelSpec:
        if self.parts == 1:
            return replace(spec, layers=layers)
        return replace(
            spec,
            layers=layers,
            heads=len(self.span(spec.heads)),
            kv_heads=len(self.kv_heads(spec.kv_heads)),
            intermediate=len(self.span(spec.intermediate)),
            experts=spec.experts
            and replace(spec.experts, shared=len(self.span(spec.experts.shared))),
        )

    def check(self, spec: ModelSpec) -> None:
        """That the model can be cut so.

        Raises:
            ConfigError: it cannot, and why.
        """
        if self.stages > len(spec.layers):
            raise ConfigError(
                f"pipeline_parallel is {self.stages}, and the model has {len(spec.layers)} layers",
                fix="give at most as many stages as there are layers",
            )
        if spec.recurrence is not None and self.ranks > 1:
            raise _uncut(spec, "layers with a recurrence")
        if self.parts == 1:
            return
        whole = {
            "latent attention": spec.latent is not None,
            "norms of its experts": spec.experts is not None and spec.experts.beside,
            "heads of two shapes": spec.whole is not None,
            "gates on its heads": spec.gated_attention,
            "norms over all heads together": spec.qk_norm == "whole",
        }
        for what, there in whole.items():
            if there:
                raise _uncut(spec, what)
        if spec.experts is not None and spec.experts.count < self.parts:
            raise ConfigError(
                f"tensor_parallel is {self.parts}, and the model has {spec.experts.count} experts"
                " in a layer",
                fix="give at most as many parts as there are experts",
            )
        kv_heads, parts = spec.kv_heads, self.parts
        if spec.heads % parts or (kv_heads % parts and parts % kv_heads):
            raise ConfigError(
                f"tensor_parallel is {parts}, and the model has {spec.heads} query heads and"
                f" {kv_heads} key and value heads, which cannot be dealt out evenly",
                fix="give a number that divides both",
            )


def _uncut(spec: ModelSpec, what: str) -> ConfigError:
    instead = "run it on one rank" if spec.recurrence else "use pipeline_parallel, or one rank"
    return ConfigError(
        f"{spec.architecture} has {what}, which cannot be cut into parts yet",
        fix=instead,
    )


WHOLE = Shard()
"""All of a model."""


class Split(NamedTuple):
    """A rank among others.

    Args:
        shard: its part.
        tensor: those of its stage; None: it is alone in that.
        world: all of them.
        meet: gives all ranks what each of them says, by rank, once all have: values that JSON has.
            It raises if one of them cannot go on.
    """

    shard: Shard
    tensor: Collective | None
    world: Collective
    meet: Callable[[Any], list[Any]]
