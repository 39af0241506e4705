"""The native paged attention computes what the reference defines."""

import math

import kvrt_kernels
import pytest
import torch
from kvrt_kernels import attention, reference

from kvrt.errors import ContractError
from kvrt.spi import AttentionParams

FORMATS = ["float32", "bfloat16", "float16", "int8", "int4"]

# Both sides read the same rounded keys and values and compute in float32, so the tolerance is
# that of float32 for all formats, but for the rounding of q where keys are codes, and of q and of
# the weights of values to bfloat16 in the tiles of AMX.
TOLERANCE = {"int8": 4e-3, "int4": 2e-3}
TOLERANCE_OF_TILES = 1e-2

RAGGED = {0: (1, 5), 1: (3, 123), 2: (1, 64), 3: (65, 65), 4: (130, 517), 5: (1, 1030), 6: (1, 1)}
LENGTHS = [context for _, context in RAGGED.values()]


def queries(batch, heads, head_dim, seed=1):
    tokens = int(batch.query_start[-1])
    return torch.randn(tokens, heads, head_dim, generator=torch.Generator().manual_seed(seed))


def check(cache, attend, heads, params, tolerance=None):
    in_tiles = cache.layout.format == "bfloat16" and kvrt_kernels.isa() == "x86-64-v4-amx"
    usual = TOLERANCE_OF_TILES if in_tiles else TOLERANCE.get(cache.layout.format, 2e-5)
    tolerance = tolerance or usual
    batch = cache.batch(RAGGED)
    q = queries(batch, heads, cache.layout.head_dim)
    got = attend(batch, q, params)
    want = attend(batch, q, params, by=reference)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (9, 3), (1, 1), (16, 1), (5, 5)])
def test_a_ragged_batch_attends_as_the_reference_does(isa, cache, attend, dtype, heads, kv_heads):
    check(
        cache(LENGTHS, dtype=dtype, kv_heads=kv_heads), attend, heads, AttentionParams(scale=0.125)
    )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("head_dim", [16, 48, 80, 96, 112, 128, 256])
def test_every_head_size_is_served(isa, cache, attend, dtype, head_dim):
    check(
        cache(LENGTHS, dtype=dtype, head_dim=head_dim),
        attend,
        6,
        AttentionParams(scale=head_dim**-0.5),
    )


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("page_size", [1, 7, 8, 24, 256])
def test_every_page_size_is_served(isa, cache, attend, dtype, page_size):
    made = cache(LENGTHS, dtype=dtype, page_size=page_size)
    check(made, attend, 4, AttentionParams(scale=0.125))


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 200, 600, 5000])
def test_a_window_hides_older_positions(isa, cache, attend, dtype, window):
    check(cache(LENGTHS, dtype=dtype), attend, 4, AttentionParams(scale=0.125, window=window))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("window", [1, 64, 600])
@pytest.mark.parametrize("sinks", [1, 70, 600])
def test_sinks_are_seen_besides_the_window(isa, cache, attend, dtype, window, sinks):
    logits = torch.tensor([0.5, -3.0, 8.0, 1.0])
    params = AttentionParams(scale=0.125, window=window, sinks=sinks, sink_logits=logits)
    check(cache(LENGTHS, dtype=dtype), attend, 4, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
def test_a_token_may_see_its_whole_context(isa, cache, attend, dtype):
    check(cache(LENGTHS, dtype=dtype), attend, 4, AttentionParams(scale=0.125, causal=False))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@pytest.mark.parametrize("window", [0, 70])
def test_scores_are_capped(isa, cache, attend, softcap, window):
    check(cache(LENGTHS), attend, 4, AttentionParams(scale=1.0, window=window, softcap=softcap))


def test_tiles_of_amx_round_queries_and_weights_to_bfloat16_and_nothing_else(cache, attend):
    """Where that rounding loses nothing, float32 arithmetic has the same result."""
    if "x86-64-v4-amx" not in kvrt_kernels.isas():
        pytest.skip("x86-64-v4-amx never ran: this processor has no AMX")
    made = cache(LENGTHS, dtype="bfloat16", head_dim=80)
    batch = made.batch(RAGGED)
    # Scores are whole numbers in powers of two, so weights relative to the largest are such powers.
    made.kv.copy_(made.kv.sign().nan_to_num(0.0))
    q = queries(batch, 6, 80).sign() * (0.5 / math.log2(math.e))
    before = kvrt_kernels.isa()
    results = []
    for isa in ("x86-64-v4-amx", "x86-64-v4"):
        kvrt_kernels.set_isa(isa)
        results.append(attend(batch, q, AttentionParams(scale=1.0)))
    kvrt_kernels.set_isa(before)
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-5)


def test_large_scores_do_not_overflow(isa, cache, attend):
    # A score of 1,000 has a last bit of 6e-5, and its weight that relative error.
    check(cache(LENGTHS), attend, 4, AttentionParams(scale=40.0), tolerance=2e-3)


def test_q_and_out_may_be_slices_of_wider_rows(cache):
    made = cache(LENGTHS)
    batch = made.batch(RAGGED)
    tokens = int(batch.query_start[-1])
    wide = torch.randn(tokens, 10, 64)
    target = torch.zeros(tokens, 9, 64)
    params = AttentionParams(scale=0.125)
    plan = attention.plan(batch)
    attention.run(plan, 0, wide[:, 3:7], target[:, 2:6], params)
    want = torch.empty(tokens, 4, 64)
    attention.run(plan, 0, wide[:, 3:7].contiguous(), want, params)
    assert torch.equal(target[:, 2:6], want)
    assert not target[:, :2].any()
    assert not target[:, 6:].any()


def test_a_sequence_may_bring_no_tokens(isa, cache, attend):
    made = cache([40, 50])
    params = AttentionParams(scale=0.125)
    q = torch.randn(3, 4, 64)
    with_idle = attend(made.batch({0: (0, 40), 1: (3, 50)}), q, params)
    assert torch.equal(with_idle, attend(made.batch({1: (3, 50)}), q, params))


def test_a_batch_may_be_empty(cache, attend):
    batch = cache([40]).batch({})
    assert attend(batch, torch.zeros(0, 4, 64), AttentionParams(scale=0.125)).shape == (0, 4, 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 24}, "head_dim"),
        ({"head_dim": 272}, "head_dim"),
    ],
)
def test_a_layout_the_kernels_do_not_know_is_refused(cache, change, words):
    batch = cache([10], **change).batch({0: (1, 10)})
    with pytest.raises(ContractError, match=words):
        attention.plan(batch)


def test_tensors_of_another_shape_or_dtype_are_refused(cache):
    batch = cache([10]).batch({0: (1, 10)})
    plan = attention.plan(batch)
    params = AttentionParams(scale=0.125)
    good = torch.zeros(1, 4, 64)
    for q, out, words in (
        (good.double(), good, "q must be float32"),
        (good, good[..., :32], "out must be float32"),
        (torch.zeros(1, 3, 64), torch.zeros(1, 3, 64), "cannot share"),
        (good[:0], good[:0], "0 rows for 1 tokens"),
    ):
        with pytest.raises(ContractError, match=words):
            attention.run(plan, 0, q, out, params)
