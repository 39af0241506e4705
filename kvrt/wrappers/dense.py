"""Checks of the optional `DenseOps`."""

import math
from typing import get_args

import torch

from kvrt.spi import Activation, DenseOps, HeadNorm, Rotation
from kvrt.wrappers.attention import CheckedAttention, CheckedPlan
from kvrt.wrappers.rules import Facts, broken


class CheckedDenseOps:
    """`DenseOps` that refuses tensors its rules do not allow, in a few microseconds a call."""

    def __init__(self, facts: Facts, attention: CheckedAttention, inner: DenseOps) -> None:
        self._facts = facts
        self._attention = attention
        self._inner = inner
        self._plan: CheckedPlan | None = None
        self._rotation: Rotation | None = None

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_matrix(self._facts, x, weight)
        check_product(self._facts, x, width, bias, residual, out)
        return self._inner.linear(x, weight, bias, residual, out)

    def gated_linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        activation: Activation,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_matrix(self._facts, x, weight)
        check_halves(weight, width)
        check_activation(activation)
        if bias is not None:
            self._facts.check_vector("bias", bias, width)
        check_product(self._facts, x, width // 2, None, None, out)
        return self._inner.gated_linear(x, weight, activation, bias, out)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        check_x(self._facts, x)
        check_product(self._facts, x, x.shape[1], None, None, out)
        self._facts.check_vector("weight", weight, x.shape[1])
        if not 0 <= eps < math.inf:
            raise broken("eps", eps, "must be finite and not negative")
        return self._inner.rms_norm(x, weight, eps, out)

    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        checked = self._attention.check_step("rotate_append", plan, layer)
        self._attention.check_rows("q", q, checked, None)
        self._attention.check_kv(k, v, checked)
        if not q.dtype == k.dtype == v.dtype:
            raise broken("k", k, f"q, k and v must have one dtype; q has {q.dtype}, v {v.dtype}")
        head_dim = checked.layout.head_dim
        # Most often all layers of a step rotate alike.
        if rotation is not None and (self._rotation is not rotation or self._plan is not checked):
            check_rotation(self._facts, rotation, checked.tokens, head_dim)
            self._plan, self._rotation = checked, rotation
        if norm is not None:
            self._facts.check_vector("norm.q", norm.q, head_dim)
            self._facts.check_vector("norm.k", norm.k, head_dim)
            if not 0 <= norm.eps < math.inf:
                raise broken("norm.eps", norm.eps, "must be finite and not negative")
        self._inner.rotate_append(checked.inner, layer, q, k, v, rotation, norm)


def check_rotation(facts: Facts, rotation: Rotation, tokens: int, head_dim: int) -> None:
    """Angles for that many tokens, of heads that wide."""
    cos, sin = rotation.cos, rotation.sin
    for name, tensor in (("rotation.cos", cos), ("rotation.sin", sin)):
        facts.check_on_device(name, tensor)
        if tensor.dtype != torch.float32 or tensor.dim() != 2 or not tensor.is_contiguous():
            raise broken(name, tensor, "must be float32 [tokens, rotary_dim / 2], contiguous")
    if cos.shape != sin.shape:
        raise broken("rotation.sin", sin, f"must have the shape of cos, {list(cos.shape)}")
    if cos.shape[0] != tokens or 2 * cos.shape[1] > head_dim:
        rule = f"must have {tokens} rows, one for each token, of at most {head_dim // 2} angles"
        raise broken("rotation.cos", cos, rule)


def check_x(facts: Facts, x: torch.Tensor, name: str = "x") -> None:
    """The rows that a product or a norm takes."""
    facts.check_open("a dense operator")
    facts.check_activation(name, x)
    if x.dim() != 2:
        raise broken(name, x, "must be [tokens, in features]")
    _check_last_contiguous(name, x)


def check_matrix(facts: Facts, x: torch.Tensor, weight: torch.Tensor) -> int:
    """A weight of floats, and the rows that it multiplies: out features of ``x @ weight.T``."""
    check_x(facts, x)
    facts.check_on_device("weight", weight)
    shape = weight.shape
    if len(shape) != 2 or shape[1] != x.shape[1] or not weight.is_contiguous():
        rule = f"must be [out features, {x.shape[1]}], contiguous"
        raise broken("weight", weight, rule)
    if weight.dtype not in facts.weight_dtypes:
        rule = f"must have one of the dtypes {', '.join(facts.info.weight_dtypes)}"
        raise broken("weight", weight, rule)
    return shape[0]


def check_halves(weight: torch.Tensor, width: int) -> None:
    """A weight of gate and up, of `width` rows together."""
    if width % 2:
        raise broken("weight", weight, "needs as many rows for gate as for up")


def check_product(
    facts: Facts,
    x: torch.Tensor,
    width: int,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
    name: str = "residual",
) -> None:
    """What is added to rows of `width` features that are made of x, and where they go.

    Args:
        name: what the residual is called.
    """
    shape = (x.shape[0], width)
    of_x = f"must be {list(shape)} in the dtype of x, {x.dtype}"
    if bias is not None:
        facts.check_vector("bias", bias, width)
    if residual is not None:
        facts.check_on_device(name, residual)
        if residual.shape != shape or residual.dtype != x.dtype:
            raise broken(name, residual, of_x)
        _check_last_contiguous(name, residual)
    if out is not None:
        facts.check_on_device("out", out)
        if out.shape != shape or out.dtype != x.dtype or not out.is_contiguous():
            raise broken("out", out, f"{of_x}, contiguous")
        if out.numel() and out.data_ptr() == x.data_ptr():
            raise broken("out", out, "must not be x")


def check_activation(activation: Activation) -> None:
    if activation not in get_args(Activation):
        rule = f"must be one of {', '.join(get_args(Activation))}"
        raise broken("activation", repr(activation), rule)


def _check_last_contiguous(argument: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous() and tensor.stride(-1) != 1:
        raise broken(argument, tensor, "its last dimension must be contiguous")
