"""Storing keys and values in their pages, alone or with the head norm and rotation before it."""

from torch import Tensor

from kvrt.spi import HeadNorm, Rotation
from kvrt_kernels._args import (
    address,
    check_heads,
    check_vector,
    need,
    threads_or_default,
)
from kvrt_kernels._load import native
from kvrt_kernels.attention import Plan


def append(plan: Plan, layer: int, k: Tensor, v: Tensor, threads: int | None = None) -> None:
    """Store k and v in their slots, rounded to nearest even.

    Args:
        plan: from `attention.plan`.
        layer: index of the layer.
        k: float32 [tokens, kv_heads, head_dim]; rows may have any stride.
        v: float32 [tokens, kv_heads, value_dim], likewise; not stored if it is k's beginning.
        threads: None for as many as torch uses.

    Raises:
        ContractError: k or v has another shape or dtype.
    """
    rotate_append(plan, layer, None, k, v, None, None, threads)


def rotate_append(
    plan: Plan,
    layer: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    rotation: Rotation | None,
    norm: HeadNorm | None,
    threads: int | None = None,
) -> None:
    """Norm and rotate the heads of q and k in place, then store k and v in their slots.

        norm      x * weight / sqrt(mean(x^2) + eps)                          over head_dim
        rotation  (x[d], x[d + n]) -> (x[d] c - x[d + n] s, x[d + n] c + x[d] s)      0 <= d < n

    with n = rotary_dim / 2 and c, s the token's rows of cos and sin; dimensions beyond rotary_dim
    stay.

    Args:
        plan: from `attention.plan`.
        layer: index of the layer.
        q: float32 [tokens, heads, head_dim], changed in place, or None; rows may have any stride.
        k: float32 [tokens, kv_heads, head_dim], changed in place.
        v: float32 [tokens, kv_heads, value_dim].
        rotation: None for a layer without it.
        norm: None for a layer without it.
        threads: None for as many as torch uses.

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    layout = plan.batch.layout
    dim = layout.head_dim
    for name, x, width in (("k", k, dim), ("v", v, layout.value_dim)):
        check_heads(name, x, width)
        need(
            x.shape[1] == layout.kv_heads and x.shape[0] >= plan.tokens,
            f"{name} must be [{plan.tokens}, {layout.kv_heads}, {width}], not {list(x.shape)}",
        )
    if q is not None:
        check_heads("q", q, dim)
        need(q.shape[0] >= plan.tokens, f"q has {q.shape[0]} rows for {plan.tokens} tokens")
    if rotation is not None:
        rot_dim = 2 * rotation.cos.shape[1]
        need(rot_dim <= dim, f"rotary_dim {rot_dim} is larger than head_dim {dim}")
        count = rotation.cos.shape[0]
        need(count >= plan.tokens, f"cos has {count} rows for {plan.tokens} tokens")
        check_vector("cos", rotation.cos.view(-1), rotation.cos.numel())
        check_vector("sin", rotation.sin.view(-1), rotation.cos.numel())
    if norm is not None:
        check_vector("the norm's weight for q", norm.q, dim)
        check_vector("the norm's weight for k", norm.k, dim)
    launch(plan, layer, q, k, v, rotation, norm, threads_or_default(threads))


def launch(
    plan: Plan,
    layer: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    rotation: Rotation | None,
    norm: HeadNorm | None,
    threads: int,
) -> None:
    """`rotate_append` without its checks, for callers that made them."""
    native().append(
        *plan.cache(layer),
        address(q),
        0 if q is None else q.stride(0),
        0 if q is None else q.shape[1],
        k.data_ptr(),
        k.stride(0),
        v.data_ptr(),
        v.stride(0),
        0 if norm is None else norm.q.data_ptr(),
        0 if norm is None else norm.k.data_ptr(),
        0.0 if norm is None else norm.eps,
        0 if rotation is None else rotation.cos.data_ptr(),
        0 if rotation is None else rotation.sin.data_ptr(),
        0 if rotation is None else 2 * rotation.cos.shape[1],
        threads,
    )
