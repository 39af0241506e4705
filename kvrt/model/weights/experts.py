"""Which weights the experts of a layer have."""

from collections.abc import Iterator

from kvrt.model.spec import ExpertSpec


def expert_weights(
    experts: ExpertSpec, hidden: int
) -> Iterator[tuple[str, dict[str, int], tuple[int, ...], int]]:
    """The weights of a layer's experts: field, rows by kind, columns, and for how many experts."""
    count, width = experts.count, experts.width
    gate_up, down = {"expert_gate": width, "expert_up": width}, {"expert_down": hidden}
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
