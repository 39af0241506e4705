"""Recorded calls compute what the same calls compute one by one, to the bit."""

from collections.abc import Sequence

import pytest
import torch
from kvrt_kernels import append, attention, linear, norm
from kvrt_kernels.attention import Plan
from kvrt_kernels.program import Program
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import AttentionParams, HeadNorm, Rotation

LENGTHS = [1, 64, 130, 700, 16]
HEADS, KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 64, 200
ROWS = len(LENGTHS)


class Layer:
    """One layer of a decoder, in tensors that stay."""

    def __init__(self, dtype: torch.dtype, rows: int) -> None:
        random = torch.Generator().manual_seed(3)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random) * shape[-1] ** -0.5

        angle = torch.rand(rows, HEAD_DIM // 2, generator=random)
        self.rotation = Rotation(angle.cos(), angle.sin())
        self.head_norm = HeadNorm(weight(HEAD_DIM), weight(HEAD_DIM), 1e-6)
        self.qkv_weight = weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH).to(dtype)
        self.o_weight = weight(WIDTH, HEADS * HEAD_DIM).to(dtype)
        self.gate_up = weight(2 * 333, WIDTH).to(dtype)
        self.down = weight(WIDTH, 333).to(dtype)
        self.norm_weight, self.bias = weight(WIDTH), weight(WIDTH)
        self.x, self.normed = torch.empty(rows, WIDTH), torch.empty(rows, WIDTH)
        self.qkv = torch.empty(rows, HEADS + 2 * KV_HEADS, HEAD_DIM)
        self.attended, self.gated = torch.empty(rows, HEADS, HEAD_DIM), torch.empty(rows, 333)

    def run(self, plan: Plan, threads: int) -> None:
        q, k, v = self.qkv.split_with_sizes((HEADS, KV_HEADS, KV_HEADS), 1)
        params = AttentionParams(HEAD_DIM**-0.5)
        for _ in range(3):
            norm.launch(self.x, self.norm_weight, 1e-5, self.normed, threads)
            linear.launch(self.normed, self.qkv_weight, None, None, self.qkv.flatten(1), threads)
            append.launch(plan, 1, q, k, v, self.rotation, self.head_norm, threads)
            attention.launch(plan, 1, q, self.attended, params, threads)
            attended = self.attended.flatten(1)
            linear.launch(attended, self.o_weight, self.bias, self.x, self.x, threads)
            linear.launch_gated(self.x, self.gate_up, "silu", None, self.gated, threads)
            linear.launch(self.gated, self.down, None, self.x, self.x, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_program_computes_the_same_bits_for_each_batch(isa, cache, dtype, threads):
    paged = cache(LENGTHS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    layer = Layer(dtype, ROWS)
    full = {s: (1, n) for s, n in enumerate(LENGTHS)}
    plans = [attention.plan(paged.batch(full))]
    program = Program(plans, lambda plans: layer.run(plans[0], threads), threads)
    # Other orders, and other contexts: what was recorded must not be looked at again.
    for number, order in enumerate(([0, 1, 2, 3, 4], [4, 2, 0, 1, 3])):
        batch = paged.batch({s: (1, max(1, LENGTHS[s] - 3 * number)) for s in order})
        x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(number))
        results = []
        for compute in (lambda plan: layer.run(plan, threads), lambda plan: program.run([plan])):
            layer.x.copy_(x)
            compute(attention.plan(batch))
            results.append((layer.x.clone(), layer.qkv.clone(), paged.kv.clone()))
        for eager, replayed in zip(*results, strict=True):
            assert torch.equal(eager.nan_to_num(7.0), replayed.nan_to_num(7.0))
        assert results[0][0].isfinite().all()


def test_nothing_is_computed_while_recording(cache):
    paged = cache(LENGTHS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    layer = Layer(torch.float32, ROWS)
    layer.x.fill_(1.0)
    kv = paged.kv.clone()
    batch = paged.batch({s: (1, n) for s, n in enumerate(LENGTHS)})
    Program([attention.plan(batch)], lambda plans: layer.run(plans[0], 2), 2)
    assert (layer.x == 1.0).all()
    assert torch.equal(paged.kv.nan_to_num(7.0), kv.nan_to_num(7.0))


def test_recording_ends_with_an_error(cache):
    paged = cache([5], kv_heads=KV_HEADS, head_dim=HEAD_DIM)

    def fail(plans: Sequence[Plan]) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        Program([attention.plan(paged.batch({0: (1, 5)}))], fail, 2)
    assert norm.rms_norm(torch.ones(1, 8), torch.ones(8), 0.0).tolist() == [[1.0] * 8]


def test_a_batch_of_another_size_or_other_pages_is_refused(cache):
    paged, other = (cache([5, 6], kv_heads=KV_HEADS, head_dim=HEAD_DIM) for _ in range(2))
    layer = Layer(torch.float32, 2)
    plan = attention.plan(paged.batch({0: (1, 5), 1: (1, 6)}))
    program = Program([plan], lambda plans: layer.run(plans[0], 1), 1)
    with pytest.raises(ContractError, match="2 batches, and 1 were recorded"):
        program.run([plan, plan])
    with pytest.raises(ContractError, match="1 tokens, the recorded one 2"):
        program.run([attention.plan(paged.batch({0: (1, 5)}))])
    with pytest.raises(ContractError, match="another kv"):
        program.run([attention.plan(other.batch({0: (1, 5), 1: (1, 6)}))])
