"""What the layers of encoders are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import Norm


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Attention of one text's tokens, or one sound's frames, each to all: [tokens, hidden].

    Args:
        qkv: [tokens, 3 * hidden], of each its query, key and value.
    """
    parts = qkv.view(len(qkv), 3, heads, -1).permute(1, 2, 0, 3)
    q, k, v = parts.contiguous().unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)


def normed(x: Tensor, norm: Norm, eps: float, dtype: torch.dtype) -> Tensor:
    """The norm of layers (Ba et al. 2016, arXiv 1607.06450) in float32: [tokens, hidden]."""
    return F.layer_norm(x.float(), norm.weight.shape, *norm, eps).to(dtype)
