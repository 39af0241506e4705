"""Which weights a layer with a recurrence has, in place of qkv.

mixer_in      [made, hidden]          what is convolved, and what its result is multiplied by
mixer_gates   [gates, hidden]
conv          [channels, kernel]
"""

from collections.abc import Iterator

from kvrt.model.states import GatedDelta, Recurrent


def recurrence_weights(
    shape: Recurrent, hidden: int
) -> Iterator[tuple[str, dict[str, int], tuple[int, ...]]]:
    """The weights of a layer: field, rows by kind, and columns."""
    mixer_in, filters, out = (
        {"mixer_in": shape.made},
        {"conv": shape.channels},
        {"mixer_out": hidden},
    )
    if isinstance(shape, GatedDelta):
        heads = shape.value_heads
        mixer_in = {"delta_qkv": shape.channels, "delta_z": shape.out}
        yield "mixer_gates", {"delta_b": heads, "delta_a": heads}, (hidden,)
        yield "decay_log", {"decay_log": heads}, ()
        yield "decay_bias", {"decay_bias": heads}, ()
        yield "mixer_norm", {"mixer_norm": shape.value_dim}, ()
    yield "mixer_in", mixer_in, (hidden,)
    yield "conv", filters, (shape.kernel,)
    yield "o", out, (shape.out,)
    if not isinstance(shape, GatedDelta) and shape.bias:
        yield "mixer_in_bias", mixer_in, ()
        yield "conv_bias", filters, ()
        yield "o_bias", out, ()
