"""Multi-head latent attention, around attention itself; see `spec.LatentSpec`.

    latent, key = kv_down @ x           normed, rotated; both go to the KV pages, as one key
    q = q_up @ norm(q_down @ x)         or q_down @ x alone
    query = key_up @ q's plain part | q's other part, rotated
    x += o @ (value_up @ attention(query, pages))

where key_up and value_up have a matrix for each head. Prefill and decode are the same: what a token
sees does not depend on how its text was cut into steps.
"""

from torch import Tensor

from kvrt.model.decoder.activations import Activations
from kvrt.model.decoder.ops import MixedOps, rotate
from kvrt.model.spec import LatentSpec
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import BranchOps, Device, LatentOps, PagedAttention, Rotation


class Latents:
    """What the layers of a model have in common.

    Args:
        spec: how keys and values are made.
        ops: the operators of its products.
        device: computes, with its own `LatentOps` and `BranchOps` if it has them.
    """

    def __init__(self, spec: LatentSpec, ops: MixedOps, device: Device) -> None:
        own = device.extension(LatentOps)  # type: ignore[type-abstract]
        self._spec = spec
        self._heads: LatentOps = PlainLatents(ops) if own is None else own
        self._branches = device.extension(BranchOps)  # type: ignore[type-abstract]
        self.recordable = own is not None and self._branches is not None

    def append(
        self,
        attention: PagedAttention,
        plan: object,
        layer: int,
        w: LayerWeights,
        work: Activations,
        rotation: Rotation | None,
        ops: MixedOps,
    ) -> None:
        """From what a layer's first product made: store the token's key, and make its queries."""
        spec = self._spec
        assert w.latent_norm is not None
        assert w.key_up is not None
        latent = work.k[:, 0, : spec.rank]
        if self._branches is not None:
            self._branches.norm_rows(latent, w.latent_norm, spec.eps)
        else:
            latent.copy_(ops.rms_norm(latent, w.latent_norm, spec.eps))
        if spec.query_rank:
            assert w.query_norm is not None
            ops.rms_norm(work.qkv[:, : spec.query_rank], w.query_norm, spec.eps, work.low)
            ops.linear(work.low, w.q_up, None, None, work.raw.flatten(1))
        self._heads.rotate(work.k[..., spec.rank :], rotation, work.k[..., spec.rank :])
        self._heads.rotate(work.raw[..., spec.plain :], rotation, work.q[..., spec.rank :])
        self._heads.by_head(work.raw[..., : spec.plain], w.key_up, work.q[..., : spec.rank])
        attention.append(plan, layer, work.k, work.v)

    def values(self, w: LayerWeights, work: Activations) -> None:
        """From what attention read: each head's value."""
        assert w.value_up is not None
        rows = work.attended_rows
        heads = rows.view(len(rows), -1, self._spec.value)
        self._heads.by_head(work.attended, w.value_up, heads)


class PlainLatents:
    """`kvrt.spi.LatentOps` by the operators of a dense decoder, on any device."""

    def __init__(self, ops: MixedOps) -> None:
        self._ops = ops

    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        for head, matrix in enumerate(weight):
            out[:, head].copy_(self._ops.linear(x[:, head], matrix))

    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)
        if rotation is not None:
            rotate(out, rotation)
