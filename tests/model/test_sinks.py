"""A learned logit beside each head's scores is what it is in transformers' gpt-oss.

None of the families that are read has one, so attention itself is compared.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from kvrt.spi import Device
from kvrt.testing.paged import Case, attend, randoms

TOKENS = 70


@pytest.mark.parametrize("device", ["cpu", "plain"])
@pytest.mark.parametrize("window", [0, 20])
def test_a_learned_logit_is_as_in_gpt_oss(
    device: str, window: int, request: pytest.FixtureRequest
) -> None:
    opened: Device = request.getfixturevalue(device)
    case = Case(contexts=(TOKENS,), queries=(TOKENS,), layers=1, window=window)
    logits = 2 * randoms(opened, "float32", case.heads, seed=7)
    got, defined = attend(opened, case, sink_logits=logits)
    shapes = ((case.heads, 100), (case.kv_heads, 1), (case.kv_heads, 2))  # q, k, v; and their seeds
    q, k, v = (
        randoms(opened, "float32", TOKENS, heads, case.head_dim, seed=seed).transpose(0, 1)[None]
        for heads, seed in shapes
    )
    behind = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    hidden = (behind < 0) | (behind >= (window or TOKENS))
    layer = SimpleNamespace(
        sinks=logits, num_key_value_groups=case.heads // case.kv_heads, training=False
    )
    mask = torch.zeros(TOKENS, TOKENS).masked_fill(hidden, -torch.inf)
    wanted, _ = eager_attention_forward(layer, q, k, v, mask, scaling=case.params.scale)
    torch.testing.assert_close(got, wanted.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(defined, wanted.double(), rtol=1e-5, atol=1e-5)
