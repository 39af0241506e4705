"""Which weights the experts of a layer have, and the experts that these are."""

from collections.abc import Iterator

from kvrt.model.spec import ExpertSpec
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import Experts


def expert_weights(
    experts: ExpertSpec, hidden: int
) -> Iterator[tuple[str, dict[str, int], tuple[int, ...], int]]:
    """The weights of a layer's experts: field, rows by kind, columns, and for how many experts."""
    count, width = experts.count, experts.width
    gates = {"expert_gate": width} if experts.gated else {}
    gate_up, down = gates | {"expert_up": width}, {"expert_down": hidden}
    yield "router", {"router": count}, (hidden,), 0
    if experts.router_bias:
        yield "router_bias", {"router": count}, (), 0
    if experts.correction:
        yield "correction", {"correction": count}, (), 0
    if experts.shared_scale:
        yield "shared_scale", {"shared_scale": 1}, (hidden,), 0
    if experts.beside:
        yield "router_scale", {"router_scale": hidden}, (), 0
        yield "expert_scale", {"expert_scale": count}, (), 0
        for norm in ("expert_norm", "expert_post_norm", "shared_post_norm"):
            yield norm, {norm: hidden}, (), 0
    yield "expert_gate_up", gate_up, (hidden,), count
    if experts.bias:
        yield "expert_gate_up_bias", gate_up, (), count
    yield "expert_down", down, (width,), count
    if experts.bias:
        yield "expert_down_bias", down, (), count


def experts_of(spec: ExpertSpec, count: int, w: LayerWeights) -> Experts:
    """So many experts, whose weights these are."""
    gate_up_bias, down_bias = (
        None if bias is None else bias.view(count, -1)
        for bias in (w.expert_gate_up_bias, w.expert_down_bias)
    )
    return Experts(
        count,
        spec.width,
        w.expert_gate_up,
        w.expert_down,
        spec.activation,
        gate_up_bias,
        down_bias,
        spec.limit,
        spec.alpha,
    )
