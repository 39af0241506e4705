"""Mixtures of experts have the bits of each expert's products, added in the order of the choice."""

from dataclasses import replace

import pytest
import torch
from kvrt_kernels import experts as kernels
from kvrt_kernels import packed, panels
from kvrt_kernels.linear import gated_linear, linear
from kvrt_kernels.program import Program

from kvrt.spi import Experts, Router
from kvrt.testing import experts as reference
from kvrt.testing import matrices

COUNT, WIDTH, IN, OUT, EACH = 7, 48, 96, 80, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS = [1, 2, 19, 130, 400]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_floats(dtype, **facts):
    return Experts(
        COUNT,
        WIDTH,
        (normal(COUNT * 2 * WIDTH, IN, seed=1) / 8).to(dtype),
        (normal(COUNT * OUT, WIDTH, seed=2) / 8).to(dtype),
        gate_up_bias=normal(COUNT, 2 * WIDTH, seed=3),
        down_bias=normal(COUNT, OUT, seed=4),
        **facts,
    )


def choice(tokens):
    random = torch.Generator().manual_seed(tokens)
    order = [torch.randperm(COUNT - 1, generator=random)[:EACH] for _ in range(tokens)]
    return torch.stack(order).int(), torch.rand(tokens, EACH, generator=random)


def mixed(experts, x, chosen, weights, residual=None, *, threads=2, exact=False):
    out = torch.full((len(x), OUT), torch.nan)
    products = kernels.Products(experts, exact=exact)
    products.mix(x, chosen, weights, residual, out, threads)
    return out


def one_by_one(results, chosen, weights, residual=None):
    """Each token's sum of its experts' results for all tokens, in order."""
    tokens = torch.arange(len(chosen))
    total = None
    for slot in range(chosen.shape[1]):
        part = weights[:, slot, None] * results[chosen[:, slot].long(), tokens]
        total = part if total is None else total + part
    return total if residual is None else residual + total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.promise("P15")
def test_the_bits_are_those_of_each_experts_products(isa, dtype):
    experts = of_floats(dtype)
    gate_up, down = experts.gate_up.chunk(COUNT), experts.down.chunk(COUNT)
    for tokens in TOKENS:
        x, residual = normal(tokens, IN, seed=5), normal(tokens, OUT, seed=6)
        chosen, weights = choice(tokens)
        results = torch.stack(
            [
                linear(
                    gated_linear(x, gate_up[e], "silu", experts.gate_up_bias[e]),
                    down[e],
                    experts.down_bias[e],
                )
                for e in range(COUNT)
            ]
        )
        for add in (None, residual):
            want = one_by_one(results, chosen, weights, add)
            for threads in (1, 3):
                got = mixed(experts, x, chosen, weights, add, threads=threads)
                assert torch.equal(got, want), f"{tokens} tokens"


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.promise("P15")
def test_experts_may_be_codes_whose_products_have_the_same_bits(isa, exact, together):
    width, into = 256, 512
    formats = [matrices.FORMATS[name] for name in ("q4_k", "q5_1", "mxfp4")]

    def pack(format, out, columns, seed):
        plain = matrices.random_rows(format, out, columns, seed)
        memory = torch.empty(panels.nbytes(format, out, columns), dtype=torch.uint8)
        return panels.pack(format, plain, columns, memory)

    each = [(formats[0], 2 * width)] if together else [(f, width) for f in formats[:2]]
    gate_up = [pack(f, rows, into, seed) for seed in range(COUNT) for f, rows in each]
    down = [pack(formats[2], OUT, width, seed) for seed in range(COUNT)]
    experts = Experts(COUNT, width, tuple(gate_up), tuple(down))
    for tokens in (1, 5, 150):
        x = normal(tokens, into, seed=5)
        chosen, weights = choice(tokens)
        results = []
        for e in range(COUNT):
            own = tuple(gate_up[e * len(each) : (e + 1) * len(each)])
            between = packed.gated_linear(x, own, "silu", exact=exact)
            results.append(packed.linear(between, (down[e],), exact=exact))
        want = one_by_one(torch.stack(results), chosen, weights)
        assert torch.equal(mixed(experts, x, chosen, weights, exact=exact), want)


def test_clamped_experts_are_cut_and_keep_what_is_no_number(isa):
    experts = of_floats(torch.float32, activation="clamped", limit=0.5, alpha=1.7)
    x = normal(9, IN, seed=5) * 3
    chosen, weights = choice(9)
    got = mixed(experts, x, chosen, weights)
    want = reference.mix(x, experts, (experts.gate_up, experts.down), chosen, weights)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    x[4, 7] = torch.nan
    again = mixed(experts, x, chosen, weights)
    assert again[4].isnan().all()
    others = [token for token in range(9) if token != 4]
    assert torch.equal(again[others], got[others])


def test_a_program_computes_recorded_mixtures_anew():
    experts = of_floats(torch.float32)
    x, logits = normal(6, IN, seed=5), normal(6, COUNT, seed=8)
    router = Router("softmax", EACH, renormalise=True)
    chosen, weights = torch.zeros(6, EACH, dtype=torch.int32), torch.zeros(6, EACH)
    out = torch.full((6, OUT), torch.nan)
    products = kernels.Products(experts)

    def compute(plans=()):
        kernels.route(logits, router, None, chosen, weights, 2)
        products.mix(x, chosen, weights, None, out, 2)

    program = Program([], compute, 2)
    assert out.isnan().all()
    x.copy_(normal(6, IN, seed=12))
    compute()
    want = out.clone()
    out.fill_(torch.nan)
    program.run([])
    assert torch.equal(out, want)


ROUTERS = [
    Router("softmax", 6, renormalise=True),
    Router("sigmoid", 8, renormalise=True, scale=2.5, groups=8, groups_chosen=4),
    Router("sigmoid", 4, groups=4, groups_chosen=1, group_score="best"),
    Router("chosen", 4),
    Router("sparsemixer", 2, jitter=0.01),
]


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_choices_are_those_of_the_reference(router):
    logits = normal(500, 64, seed=9) * 3
    correction = None if router.score == "sparsemixer" else normal(64, seed=10) / 8
    chosen = torch.empty(500, router.chosen, dtype=torch.int32)
    weights = torch.empty(500, router.chosen)
    kernels.route(logits, router, correction, chosen, weights)
    want, parts = reference.route(logits, router, correction)
    assert chosen.tolist() == want
    torch.testing.assert_close(weights.double(), parts, rtol=1e-5, atol=1e-7)
    for token in (0, 77, 499):
        alone, share = torch.empty_like(chosen[:1]), torch.empty_like(weights[:1])
        kernels.route(logits[token : token + 1], router, correction, alone, share, 1)
        assert torch.equal(alone[0], chosen[token])
        assert torch.equal(share[0], weights[token])


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_logits_that_are_no_numbers_choose_experts_that_there_are(router):
    logits = torch.full((3, 64), torch.nan)
    logits[1, :32] = normal(32, seed=11)
    logits[2] = torch.inf
    chosen = torch.full((3, router.chosen), -1, dtype=torch.int32)
    kernels.route(logits, router, None, chosen, torch.empty(3, router.chosen))
    for row in chosen.tolist():
        assert len(set(row)) == len(row)
        assert all(0 <= expert < 64 for expert in row)


def test_products_are_of_the_experts_they_were_made_for():
    """A changed copy is another's."""
    experts = of_floats(torch.float32)
    other = replace(experts, down_bias=None)
    x, (chosen, weights) = normal(3, IN, seed=5), choice(3)
    assert not torch.equal(*(mixed(one, x, chosen, weights) for one in (experts, other)))
