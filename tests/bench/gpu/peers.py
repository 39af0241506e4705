"""Other implementations of attention, on the same pages or on contiguous copies of them.

A peer that cannot be imported, built or run is named in the results with the reason.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from kvrt.spi import AttentionBatch

Work = Callable[[], Any]
WORKSPACE_BYTES = 256 << 20


class FlashInfer:
    """FlashInfer's batch decode over the same pages, its layout ``HND`` being ours.

    Args:
        device: where.
        kept: what pages keep, as it names it: ``bf16``, or ``e4m3`` without scales.
        build: compile its kernels, which takes minutes, if they are not in its cache.

    Raises:
        FileNotFoundError: they are not, and are not to be compiled.
    """

    def __init__(self, device: torch.device, kept: str = "bf16", *, build: bool = False) -> None:
        import flashinfer
        from flashinfer.jit.env import FLASHINFER_JIT_DIR

        if not build and not any(FLASHINFER_JIT_DIR.rglob(f"*batch_decode*kv_{kept}*.so")):
            raise FileNotFoundError(
                f"FlashInfer's kernels for {kept} are not built (ci/gpu --only bench-flashinfer)"
            )
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._device = device
        self._wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")

    def decode(self, batch: AttentionBatch, q: Tensor) -> Work:
        layout = batch.layout
        size = layout.page_size
        counts = -(-batch.context_len // size)
        rows = zip(batch.page_table, counts.tolist(), strict=True)
        pages = torch.cat([row[:count] for row, count in rows])
        start = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
        last = (batch.context_len - 1) % size + 1
        self._wrapper.plan(
            start.to(self._device), pages.to(self._device), last.to(self._device),
            q.shape[1], layout.kv_heads, layout.head_dim, size,
            q_data_type=q.dtype, kv_data_type=batch.kv.dtype, sm_scale=layout.head_dim**-0.5,
        )  # fmt: skip
        whole = batch.kv[: batch.kv.numel() // layout.page_stride * layout.page_stride]
        pool = whole.view(-1, 2, layout.kv_heads, size, layout.head_dim)
        out = torch.empty_like(q)
        return lambda: self._wrapper.run(q, pool, out=out)


def contiguous_decode(q: Tensor, k: Tensor, v: Tensor) -> Work:
    """torch's SDPA for one new token a sequence, as if its pages had been gathered for nothing.

    Args:
        q: [sequences, heads, head_dim].
        k: [sequences, kv heads, context, head_dim], as v.
    """
    rows = q.unsqueeze(2)
    return lambda: functional.scaled_dot_product_attention(rows, k, v, enable_gqa=True)


def flex_decode(batch: AttentionBatch, q: Tensor) -> Work:
    """torch's flex_attention, compiled, over all pages as one sequence, masked to each one's own.

    Its block mask lists a sequence's pages; a block is a page, so pages must have 128 tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    layout, device = batch.layout, q.device
    size, count = layout.page_size, len(batch.context_len)
    pages = batch.kv.numel() // layout.page_stride
    kv = batch.kv[: pages * layout.page_stride]
    pool = kv.view(pages, 2, layout.kv_heads, size, layout.head_dim)
    # [1, kv heads, all slots, head_dim] needs the page inside the head: a copy, not timed.
    k, v = (part.transpose(0, 1).reshape(1, layout.kv_heads, pages * size, -1)
            for part in pool.unbind(1))  # fmt: skip
    blocks = (-(-batch.context_len // size)).to(device).int().view(count, 1, 1)
    table = torch.zeros(count, 1, 1, pages, dtype=torch.int32, device=device)
    table[..., : batch.page_table.shape[1]] = batch.page_table.to(device).view(count, 1, 1, -1)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(blocks), torch.zeros_like(table), blocks, table,
        BLOCK_SIZE=size, seq_lengths=(1, pages * size),
    )  # fmt: skip
    compiled = torch.compile(flex_attention, dynamic=False)
    rows = q.unsqueeze(2)
    k, v = (part.expand(count, -1, -1, -1) for part in (k, v))
    return lambda: compiled(rows, k, v, block_mask=mask, enable_gqa=True)


def contiguous_prefill(q: Tensor, k: Tensor, v: Tensor) -> Work:
    """torch's flash attention over contiguous keys and values, the last rows being the new ones.

    Args:
        q: [1, heads, new tokens, head_dim].
        k: [1, kv heads, context, head_dim], as v.
    """

    def whole() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    if q.shape[2] == k.shape[2]:
        return whole
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    mask = causal_lower_right(q.shape[2], k.shape[2])

    def chunk() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask)

    return chunk
