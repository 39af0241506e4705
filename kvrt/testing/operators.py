"""What kvrt asks of torch on a device, besides the device's own parts: an example of each.

A device's tensors are torch's (`DeviceInfo.torch_device`). Where it offers no `DenseOps` torch
computes the layers of a model on them, and in any case embeds tokens, samples and follows beams.
An example is given `on`, which brings a tensor of the host to where it is computed.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Bring = Callable[[Tensor], Tensor]
Example = Callable[[Bring, Tensor], Tensor | tuple[Tensor, ...]]
"""Of a matrix of 6 rows and 8 columns."""

_ROWS = torch.tensor([4, 0, 3, 3])


def _written(on: Bring, x: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    """What `write` makes of a copy."""
    copy = on(x).clone()
    write(copy)
    return copy


def _put(on: Bring, x: Tensor) -> Tensor:
    def write(copy: Tensor) -> None:
        copy[on(_ROWS[:3]), on(_ROWS[1:])] = on(x[0, :3])

    return _written(on, x, write)


def _mul(on: Bring, x: Tensor) -> Tensor:
    out = torch.empty_like(on(x))
    torch.mul(on(x), on(x), out=out)
    return out


def _select(on: Bring, x: Tensor) -> Tensor:
    out = torch.empty_like(on(x[:4]))
    torch.index_select(on(x), 0, on(_ROWS), out=out)
    return out


LAYERS: Mapping[str, Example] = {
    "embedding": lambda on, x: F.embedding(on(_ROWS), on(x)),
    "index_select": lambda on, x: on(x).index_select(0, on(_ROWS)),
    "index_select with out": _select,
    "linear": lambda on, x: F.linear(on(x), on(x)),
    "mm": lambda on, x: on(x) @ on(x).t(),
    "rms_norm": lambda on, x: F.rms_norm(on(x), (8,), on(x[0].float()).to(x.dtype), 1e-3),
    "silu": lambda on, x: F.silu(on(x)),
    "gelu": lambda on, x: F.gelu(on(x), approximate="tanh"),
    "add, sub, mul and div": lambda on, x: (on(x) + 1.5 - on(x[:1])) * on(x) / 4,
    "mul with out": _mul,
    "add_ and sub_": lambda on, x: on(x).clone().add_(on(x)).add_(2.0).sub_(on(x[:1])).mul_(3),
    "chunk, split and cat": lambda on, x: torch.cat(
        (*torch.split(on(x), 4, 1), *on(x).split_with_sizes((1, 5, 2), 1), *on(x).chunk(2, 1)), 1
    ),
    "detach": lambda on, x: on(x).detach(),
    "all of a row": lambda on, x: _written(on, x, lambda to: to[..., :8].copy_(on(x) * 2)),
    "unsqueeze": lambda on, x: on(x).unsqueeze(1) * on(x),
    "slices, strides and views": lambda on, x: on(x)[1:, ::2].reshape(-1).view(4, 5)[2].clone(),
    "other dtypes": lambda on, x: on(x).to(torch.float32).to(torch.bfloat16).float(),
    "bytes": lambda on, x: on(x).view(torch.uint8).clone().view(x.dtype),
    "copy_ and fill_": lambda on, x: torch.cat(
        (_written(on, x, lambda to: to[1].copy_(x[0])), _written(on, x, lambda to: to.fill_(2)))
    ),
    "empty and zeros": lambda on, x: torch.cat(
        (
            torch.empty_like(on(x)).zero_(),
            torch.zeros(6, 8, dtype=x.dtype, device=on(x).device),
            on(x).new_empty((2, 8)).zero_(),
        )
    ),
}
"""In the dtypes that the device computes in."""

SAMPLING: Mapping[str, Example] = {
    "softmax": lambda on, x: on(x).softmax(-1),
    "log_softmax": lambda on, x: on(x).log_softmax(-1),
    "logsumexp": lambda on, x: on(x).logsumexp(-1),
    "topk": lambda on, x: tuple(on(x).topk(3, dim=-1)),
    "argmax": lambda on, x: on(x).argmax(-1),
    "max": lambda on, x: (on(x).max(), *on(x).max(-1)),
    "cumsum": lambda on, x: on(x).cumsum(-1),
    "searchsorted": lambda on, x: torch.searchsorted(
        on(x.sort(-1).values), on(x[:, :1].contiguous())
    ),
    "sum": lambda on, x: torch.cat((on(x).sum().view(1), on(x).sum(-1), on(x).sum(0))),
    "abs": lambda on, x: on(x).abs(),
    "comparisons": lambda on, x: torch.stack(
        [on(x) > 0, on(x) < 0, on(x) >= on(x[:1]), on(x) <= 0.5, on(x) == on(x[:1]), on(x) != 0]
    ),
    "isfinite and all": lambda on, x: on(x).isfinite().all(),
    "any": lambda on, x: (on(x) > 2).any(-1),
    "where": lambda on, x: torch.where(on(x) > 0, on(x), on(x[:1])),
    "clamp": lambda on, x: on(x).clone().clamp_(min=-1).clamp(max=1),
    "exp and log": lambda on, x: on(x).exp().log(),
    "nonzero": lambda on, x: (on(x) > 0).nonzero(),
    "index": lambda on, x: on(x)[on(_ROWS), on(_ROWS)],
    "index_put": _put,
    "arange": lambda on, x: torch.arange(3, 9, device=on(x).device),
    "a tensor of a list": lambda on, x: torch.tensor([[1.5, 2], [3, 4]], device=on(x).device),
    "a number": lambda on, x: torch.tensor([on(x)[0, 0].item(), float(on(x).sum())]),
}
"""In float32."""
