"""kvrt's attention on CPUs in the place of vLLM's own, over vLLM's own tensor of blocks.

A block of a layer is vLLM's [KV heads, tokens, keys and values]. Nobody but this reads or writes
it, so the keys of a head come first in it, then its values, as kvrt's kernels want them.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from kvrt.errors import ConfigError
from kvrt.registry import load
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Device,
    DeviceOptions,
    KVFormat,
    KVLayout,
)

FORMATS: dict[torch.dtype, KVFormat] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@cache
def device() -> Device:
    """Of this process. Nothing checks its arguments: the blocks are vLLM's memory, not its own."""
    return load("cpu").open(0, DeviceOptions(threads=torch.get_num_threads()))


@dataclass
class Step:
    """What all layers of a group share: see `kvrt.spi.AttentionBatch`."""

    page_table: Tensor
    query_start: Tensor
    context_len: Tensor
    tokens: int


class StepBuilder(AttentionMetadataBuilder[Step]):
    """Once a step, for each group of layers."""

    def __init__(self, spec: Any, layers: list[str], config: Any, device: torch.device) -> None:
        super().__init__(spec, layers, config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Step:
        common = common_attn_metadata
        if common.causal is not True:
            raise ConfigError("kvrt's attention has no tokens that see later ones")
        count = common.num_reqs
        return Step(
            common.block_table_tensor[:count].to(torch.int32).contiguous(),
            common.query_start_loc[: count + 1].to(torch.int32).contiguous(),
            common.seq_lens[:count].to(torch.int32).contiguous(),
            common.num_actual_tokens,
        )


class PagedImpl(AttentionImpl[Step]):
    """Of one layer.

    Raises:
        ConfigError: the model asks for what the kernels do not have.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        sizes = device().info.head_dims
        asked = {
            "ALiBi": alibi_slopes is not None,
            f"attention of the kind {attn_type}": attn_type != AttentionType.DECODER,
            f"KV cache as {kv_cache_dtype}": kv_cache_dtype != "auto",
            "layers that share their blocks": kv_sharing_target_layer_name is not None,
            f"heads of {head_size}": bool(sizes) and head_size not in sizes,
        }
        for what, wanted in asked.items():
            if wanted:
                raise ConfigError(f"kvrt's attention has no {what}", fix="leave it out")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads or num_heads, kv_cache_dtype
        self._params = AttentionParams(
            scale,
            window=sliding_window or 0,
            softcap=logits_soft_cap or 0.0,
            sink_logits=None if sinks is None else sinks.float().contiguous(),
        )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Step | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Store keys and values, and attend.

        Args:
            query: [tokens, heads, head size], padded.
            key: [tokens, KV heads, head size]; `value` likewise.
            kv_cache: [blocks, KV heads, tokens of a block, 2 * head size].
            attn_metadata: None: vLLM warms up.
            output: as `query`; written.
        """
        if attn_metadata is None:
            return output
        step, count = attn_metadata, attn_metadata.tokens
        blocks, heads, tokens, both = kv_cache.shape
        layout = KVLayout(
            FORMATS[kv_cache.dtype], 1, heads, both // 2, tokens,
            page_stride=kv_cache.stride(0), layer_stride=0,
            v_offset=tokens * both // 2, head_stride=kv_cache.stride(1),
        )  # fmt: skip
        nitems = (blocks - 1) * kv_cache.stride(0) + heads * kv_cache.stride(1)
        attention = device().attention
        plan = attention.plan(
            AttentionBatch(
                kv_cache.as_strided((nitems,), (1,)),
                layout,
                step.page_table,
                step.query_start,
                step.context_len,
            )
        )
        attention.append(plan, 0, key[:count].float(), value[:count].float())
        if output.dtype is torch.float32:
            attention.run(plan, 0, query[:count], output[:count], self._params)
        else:
            found = torch.empty(count, *output.shape[1:])
            attention.run(plan, 0, query[:count].float(), found, self._params)
            output[:count] = found
        return output


class PagedBackend(AttentionBackend):
    """What vLLM asks before it asks for the rest."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [*FORMATS]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"

    @staticmethod
    def get_impl_cls() -> type[PagedImpl]:
        return PagedImpl

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        return StepBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return [*device().info.head_dims]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        return (KVCacheLayout.BLHNC, KVCacheLayout.LBHNC)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True
