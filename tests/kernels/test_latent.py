"""What latent attention puts around attention, on every instruction set."""

import pytest
import torch
from kvrt_kernels import latent, linear

from kvrt.spi import Rotation

SHAPES = [(1, 16, 24), (4, 20, 33), (7, 128, 512), (3, 300, 16), (2, 1, 1)]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "width", "rows"), SHAPES)
def test_a_head_has_the_bits_of_a_product_of_its_own(isa, dtype, heads, width, rows):
    weight = torch.randn(heads, rows, width).mul_(width**-0.5).to(dtype)
    for tokens in (0, 1, 3, 17, 97, 200, 600):
        x = torch.randn(tokens, heads + 1, width + 3)[:, 1:, :width]
        for threads in (1, 2):
            out = torch.full((tokens, heads + 1, rows + 5), 7.0)
            latent.by_head(x, weight, out[:, 1:, 2 : rows + 2], threads)
            for head in range(heads):
                want = linear.linear(x[:, head], weight[head], threads=threads)
                assert torch.equal(out[:, head + 1, 2 : rows + 2], want)
            assert torch.all(out[:, 0] == 7.0)
            assert torch.all(out[:, :, :2] == 7.0)
            assert torch.all(out[:, :, rows + 2 :] == 7.0)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("dims", [0, 2, 48, 64])
def test_heads_are_rotated_with_the_same_bits_anywhere(isa, dims):
    tokens, heads, size = 150, 5, 64
    x = torch.randn(tokens, heads, size + 16)[:, :, 16:]
    angles = torch.randn(tokens, max(1, dims // 2)) * 3
    rotation = Rotation(angles.cos(), angles.sin()) if dims else None
    out, half = torch.empty(tokens, heads, size), dims // 2
    latent.rotate(x, rotation, out, threads=2)
    want = x.clone()
    if dims:
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = x[..., :half], x[..., half:dims]
        want[..., :half] = first * cos - second * sin
        want[..., half:dims] = second * cos + first * sin
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(out[..., dims:], x[..., dims:])
    for token in (0, 77, 149):
        one = x[token : token + 1].clone()
        own = rotation and Rotation(rotation.cos[token, None], rotation.sin[token, None])
        latent.rotate(one, own, one, threads=1)
        assert torch.equal(one[0], out[token])
