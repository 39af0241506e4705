"""Storing keys and values, with the norm and the rotation before it."""

import pytest
import torch
from kvrt_kernels import append, attention, reference

from kvrt.errors import ContractError
from kvrt.spi import HeadNorm, Rotation

RAGGED = {0: (1, 5), 1: (3, 123), 2: (40, 40), 3: (0, 7), 4: (100, 300)}
LENGTHS = [context for _, context in RAGGED.values()]
HEADS, KV_HEADS = 6, 2
SCALED = ["int8", "int4"]
NOT_FINITE = [float("inf"), float("-inf"), float("nan"), -0.0]


def angles(rot_dim, count):
    """Of so many tokens, other ones for each."""
    places = torch.arange(7, 7 + count)
    angle = torch.outer(places, 10000 ** -(torch.arange(0, rot_dim, 2) / rot_dim))
    return Rotation(cos=angle.cos(), sin=angle.sin())


def tokens(batch, head_dim, seed=3):
    """q, k and v as slices of one fused projection, with values from subnormal to large."""
    random = torch.Generator().manual_seed(seed)
    count = int(batch.query_start[-1])
    fused = torch.randn(count, HEADS + 2 * KV_HEADS, head_dim, generator=random)
    fused *= 10 ** torch.empty_like(fused).uniform_(-9, 4, generator=random)
    return fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)


def same_bits(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int4"])
@pytest.mark.parametrize("page_size", [8, 16, 24])
def test_append_stores_what_torch_would_round_and_nothing_else(isa, cache, dtype, page_size):
    ours, theirs = (cache(LENGTHS, dtype=dtype, page_size=page_size) for _ in range(2))
    batch, other = ours.batch(RAGGED), theirs.batch(RAGGED)
    _, k, v = tokens(batch, 64)
    if dtype in SCALED:
        k[1], v[2, :, 5:] = 0.0, 1e-33
    else:
        v[0, 0, :4] = torch.tensor(NOT_FINITE)
    for layer in (0, 1):
        append.append(attention.plan(batch), layer, k, v)
        reference.append(reference.plan(other), layer, k, v)
    if dtype not in SCALED:
        assert torch.equal(ours.kv.isnan(), theirs.kv.isnan())
        ours.kv, theirs.kv = ours.kv.nan_to_num(nan=7.0), theirs.kv.nan_to_num(nan=7.0)
    assert same_bits(ours.kv, theirs.kv)


def numbers(batch, length):
    """What layer 0 keeps of the first sequence, [keys | values, tokens, kv_heads, head_dim]."""
    slot, size = torch.arange(length), batch.layout.page_size
    ids = batch.page_table[0, slot // size].long()
    return torch.stack([reference.read(batch, 0, kv, ids, slot % size) for kv in (0, 1)])


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("bad", NOT_FINITE[:3])
def test_what_shares_a_scale_with_what_is_not_finite_is_nan(isa, cache, dtype, bad):
    made = cache([3], dtype=dtype)
    batch = made.batch({0: (3, 3)})
    k, v = torch.randn(2, 3, KV_HEADS, 64)
    v[1, 1, 40] = bad
    append.append(attention.plan(batch), 0, k, v)
    stored = numbers(batch, 3).isnan()
    expected = torch.zeros(2, 3, KV_HEADS, 64, dtype=torch.bool)
    expected[1, 1, 1, 32 if dtype == "int4" else 0 :] = True
    assert torch.equal(stored, expected)


@pytest.mark.parametrize("dtype", SCALED)
def test_codes_are_within_half_a_step_of_what_was_stored(isa, cache, dtype):
    made = cache([50], dtype=dtype, head_dim=80)
    batch = made.batch({0: (50, 50)})
    k, v = torch.randn(2, 50, KV_HEADS, 80)
    append.append(attention.plan(batch), 0, k, v)
    for x, y in zip((k, v), numbers(batch, 50), strict=True):
        for d in range(0, 80, 32 if dtype == "int4" else 80):
            part = slice(d, d + 32 if dtype == "int4" else 80)
            largest = x[..., part].abs().amax(-1, keepdim=True)
            # 4 bits end at 7 on one side, and their scales have but 8 binary digits.
            step = largest / 8 * 1.04 if dtype == "int4" else largest / 127 / 2 * 1.0001
            assert ((x - y)[..., part].abs() <= step).all()


@pytest.mark.parametrize(("head_dim", "rot_dim"), [(64, 64), (80, 32), (128, 100), (16, 16)])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_normed_and_rotated_as_the_reference_does(isa, cache, head_dim, rot_dim, normed):
    ours, theirs = (cache(LENGTHS, head_dim=head_dim) for _ in range(2))
    batch, other = ours.batch(RAGGED), theirs.batch(RAGGED)
    norm = HeadNorm(torch.rand(head_dim), torch.rand(head_dim), 1e-6) if normed else None
    random = torch.Generator().manual_seed(4)
    count = int(batch.query_start[-1])
    shape = (count, HEADS + 2 * KV_HEADS, head_dim)
    fused = torch.randn(shape, generator=random)
    copy = fused.clone()
    q, k, v = fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    append.rotate_append(attention.plan(batch), 0, q, k, v, angles(rot_dim, count), norm)
    q, k, v = copy.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    reference.rotate_append(reference.plan(other), 0, q, k, v, angles(rot_dim, count), norm)
    torch.testing.assert_close(fused, copy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.kv, theirs.kv, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_layer_without_rotation_leaves_q_and_k_as_they_are(cache):
    batch = cache(LENGTHS).batch(RAGGED)
    q, k, v = (x.clone() for x in tokens(batch, 64))
    before = q.clone(), k.clone()
    append.rotate_append(attention.plan(batch), 0, q, k, v, None, None)
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


@pytest.mark.promise("P15")
def test_a_token_is_stored_with_the_same_bits_in_any_batch(isa, cache):
    together, alone = cache(LENGTHS, dtype="bfloat16"), cache(LENGTHS, dtype="bfloat16")
    norm = HeadNorm(torch.rand(64), torch.rand(64), 1e-6)
    batch = together.batch(RAGGED)
    whole = [x.clone() for x in tokens(batch, 64)]
    pieces = [x.clone() for x in whole]
    every = angles(64, len(whole[0]))
    append.rotate_append(attention.plan(batch), 0, *whole, every, norm, threads=2)
    row = 0
    for s, (count, length) in RAGGED.items():
        for i in range(count):
            one = alone.batch({s: (1, length - count + i + 1)})
            q, k, v = (x[row : row + 1] for x in pieces)
            own = Rotation(*(x[row : row + 1] for x in (every.cos, every.sin)))
            append.rotate_append(attention.plan(one), 0, q, k, v, own, norm, threads=1)
            row += 1
    assert torch.equal(whole[0], pieces[0])
    assert same_bits(together.kv, alone.kv)


def test_tensors_of_another_shape_or_dtype_are_refused(cache):
    batch = cache([10]).batch({0: (1, 10)})
    plan = attention.plan(batch)
    q, k = torch.zeros(1, 4, 64), torch.zeros(1, 2, 64)
    for arguments, words in (
        ((q, k.half(), k, None, None), "k must be float32"),
        ((q, k, k[:, :1], None, None), "v must be"),
        ((q[:0], k, k, None, None), "q has 0 rows"),
        ((q, k, k, angles(128, 1), None), "rotary_dim 128"),
        ((q, k, k, angles(64, 0), None), "cos has 0 rows for 1 tokens"),
        ((q, k, k, None, HeadNorm(torch.ones(32), torch.ones(64), 1e-6)), "weight for q"),
    ):
        with pytest.raises(ContractError, match=words):
            append.rotate_append(plan, 0, *arguments)
