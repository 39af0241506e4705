"""A token's attention has the same bits whatever is computed beside it: the rule of the kernels.

Everything kvrt promises about equal output (alone, batched, chunked, preempted) rests on this.
"""

import functools
import itertools
from dataclasses import replace
from random import Random

import pytest
import torch

from kvrt.spi import AttentionParams

# Lengths around tiles (64), pages (16), segments (512) and blocks of rows (126 / group).
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 300, 511, 512, 513, 1100]
PARAMS = [
    AttentionParams(scale=0.125),
    AttentionParams(scale=0.125, window=100),
    AttentionParams(scale=0.5, window=600, softcap=20.0),
    AttentionParams(scale=0.125, window=200, sinks=530, sink_logits=torch.arange(9.0) - 4),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16", "int8", "int4"])
def paged(request, cache):
    return cache(LENGTHS, dtype=request.param, kv_heads=3, head_dim=80)


@pytest.fixture(scope="module", params=PARAMS, ids=["plain", "window", "capped", "sinks"])
def params(request):
    return request.param


@functools.cache
def prompts():
    random = torch.Generator().manual_seed(5)
    return [torch.randn(n, 9, 80, generator=random) for n in LENGTHS]


@pytest.fixture(scope="module")
def whole(isa, paged, params, attend):
    """Each sequence's prompt, attended alone, in one piece, by one thread."""
    return [
        attend(paged.batch({s: (n, n)}), q, params, threads=1)
        for s, (n, q) in enumerate(zip(LENGTHS, prompts(), strict=True))
    ]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_alone_equals_together(paged, params, attend, whole, threads):
    batch = paged.batch({s: (n, n) for s, n in enumerate(LENGTHS)})
    got = attend(batch, torch.cat(prompts()), params, threads=threads)
    assert torch.equal(got, torch.cat(whole))


@pytest.mark.promise("P15")
@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 512])
def test_chunked_equals_in_one_piece(paged, params, attend, whole, chunk):
    for s in (5, 8, 12) if chunk > 1 else (8,):
        n, q = LENGTHS[s], prompts()[s]
        pieces = []
        for begin in range(0, n, chunk):
            end = min(begin + chunk, n)
            pieces.append(attend(paged.batch({s: (end - begin, end)}), q[begin:end], params))
        assert torch.equal(torch.cat(pieces), whole[s])


@pytest.mark.promise("P15")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_decoding_token_equals_the_same_token_of_a_prompt(paged, params, attend, whole, threads):
    last = torch.cat([q[-1:] for q in prompts()])
    want = torch.cat([out[-1:] for out in whole])
    batch = paged.batch({s: (1, n) for s, n in enumerate(LENGTHS)})
    assert torch.equal(attend(batch, last, params, threads=threads), want)
    for s, n in enumerate(LENGTHS):
        alone = attend(paged.batch({s: (1, n)}), last[s : s + 1], params, threads=threads)
        assert torch.equal(alone, want[s : s + 1])


@pytest.mark.promise("P15")
def test_mixed_batches_in_any_order_change_nothing(paged, params, attend, whole):
    random = Random(6)
    made = prompts()
    for _ in range(6):
        pieces = {}
        for s in random.sample(range(len(LENGTHS)), 6):
            begin = random.randrange(LENGTHS[s])
            pieces[s] = begin, random.randint(begin + 1, LENGTHS[s])
        q = torch.cat([made[s][begin:end] for s, (begin, end) in pieces.items()])
        want = torch.cat([whole[s][begin:end] for s, (begin, end) in pieces.items()])
        batch = paged.batch({s: (end - begin, end) for s, (begin, end) in pieces.items()})
        assert torch.equal(attend(batch, q, params), want)


@pytest.mark.promise("P15")
def test_page_size_and_place_change_nothing(isa, cache, attend):
    n, params = 700, AttentionParams(scale=0.125)
    q = torch.randn(n, 4, 64)
    results = []
    for page_size, seed in itertools.product((8, 16, 40, 256), (0, 1)):
        made = cache([n], page_size=page_size, seed=seed)
        # The same keys and values, laid into differently placed pages of another size.
        content = torch.randn(2, 2, n, 64, generator=torch.Generator().manual_seed(9))
        pages = made.kv.view(-1, 2, 2, 2, page_size, 64)
        for p in range(n):
            pages[made.table[0, p // page_size], 1, :, :, p % page_size] = content[:, :, p]
        results.append(attend(made.batch({0: (n, n)}), q, params))
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_that_is_not_finite_reaches_only_tokens_that_see_it(
    isa, cache, attend, window, bad, dtype
):
    n, at, params = 300, 150, AttentionParams(scale=0.125, window=window)
    q = torch.randn(n, 4, 64, generator=torch.Generator().manual_seed(8))
    clean, spoilt = cache([n], dtype=dtype), cache([n], dtype=dtype)
    pages = spoilt.kv.view(-1, 2, 2, 2, 16, 64)
    pages[spoilt.table[0, at // 16], :, :, :, at % 16] = bad
    before = attend(clean.batch({0: (n, n)}), q, params)
    after = attend(spoilt.batch({0: (n, n)}), q, params)
    sees = range(at, min(n, at + window) if window else n)
    for token in range(n):
        if token in sees:
            assert not after[token].isfinite().any()
        else:
            assert torch.equal(after[token], before[token])


@pytest.mark.promise("P15")
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_numbers_near_the_smallest_have_the_same_bits_in_any_chunk(isa, cache, attend, chunk):
    """Instructions differ in what they make of subnormal numbers."""
    n, params = 150, AttentionParams(scale=0.125)
    made = cache([n], dtype="bfloat16")
    made.kv.mul_(2.0**-126)  # keys and values that are subnormal for the most part
    q = torch.randn(n, 4, 64, generator=torch.Generator().manual_seed(8)) * 2.0**10
    whole = attend(made.batch({0: (n, n)}), q, params)
    pieces = [
        attend(
            made.batch({0: (min(chunk, n - at), min(n, at + chunk))}), q[at : at + chunk], params
        )
        for at in range(0, n, chunk)
    ]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_branch_equals_the_same_tokens_in_line(isa, cache, params, attend, threads):
    """Branches beside it, and where they lie, change nothing: 9 tokens after 500, 55 and 1,100."""
    parents = [-1, 0, 1, 0, 3, 4, -1, 6, 2]
    lengths = [509, 64, 1109]
    if params.sink_logits is not None:
        params = replace(params, sink_logits=params.sink_logits[:4])
    made = cache(lengths, dtype="bfloat16")
    batch = made.batch({s: (9, n) for s, n in enumerate(lengths)})
    q = torch.randn(27, 4, 64, generator=torch.Generator().manual_seed(4))
    tree = replace(batch, parents=torch.tensor(parents * 3, dtype=torch.int32))
    got = attend(tree, q, params, threads=threads)
    pages = made.kv.view(-1, 2, 2, 2, 16, 64)
    for s, n in enumerate(lengths):
        for leaf in range(9):
            path = [leaf]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            line = cache(lengths, dtype="bfloat16")
            moved = line.kv.view_as(pages)
            for to, row in enumerate(path):
                at, source = n - 9 + to, n - 9 + row
                moved[made.table[s, at // 16], :, :, :, at % 16] = pages[
                    made.table[s, source // 16], :, :, :, source % 16
                ]
            rows = [9 * s + row for row in path]
            alone = attend(line.batch({s: (len(path), n - 9 + len(path))}), q[rows], params)
            assert torch.equal(got[rows], alone)
