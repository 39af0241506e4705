"""Which weights a layer with a recurrence has, in place of qkv and o.

mixer_in      [made, hidden]          what is convolved, and what its result is multiplied by
mixer_gates   [gates, hidden]          or those of b alone, where there are
mixer_z       [out, rank]
mixer_decay   [decays, rank]
conv          [channels, kernel]
mixer_out     [hidden, out]
"""

from collections.abc import Container, Iterator

from kvrt.model.states import GatedDelta, Recurrent, StateSpace

Rows = dict[str, int]
"""How many rows of a weight are of which kind."""


def recurrence_weights(
    shape: Recurrent, hidden: int, names: Container[str]
) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
    """The weights of a layer: field, rows by kind, and columns.

    Args:
        names: the kinds that files have; some have what is convolved apart.
    """
    mixer_in: Rows = {"mixer_in": shape.made}
    filters, out = {"conv": shape.channels}, {"mixer_out": hidden}
    if isinstance(shape, GatedDelta):
        heads = shape.value_heads
        mixer_in = {"delta_qkv": shape.channels}
        if "delta_q" in names:
            mixer_in = {"delta_q": shape.keys, "delta_k": shape.keys, "delta_v": shape.out}
            filters = {"conv_q": shape.keys, "conv_k": shape.keys, "conv_v": shape.out}
        decays = heads * shape.decays
        if shape.rank:
            mixer_in |= {"delta_z_down": shape.rank, "delta_a_down": shape.rank}
            yield "mixer_gates", {"delta_b": heads}, (hidden,)
            yield "mixer_z", {"delta_z_up": shape.out}, (shape.rank,)
            yield "mixer_decay", {"delta_a_up": decays}, (shape.rank,)
        else:
            mixer_in["delta_z"] = shape.out
            yield "mixer_gates", {"delta_b": heads, "delta_a": decays}, (hidden,)
        yield from _vectors(decay_log=heads, decay_bias=decays, mixer_norm=shape.value_dim)
    if isinstance(shape, StateSpace):
        yield from _vectors(decay_log=shape.heads, decay_bias=shape.heads, skip=shape.heads)
        if shape.gating != "only":
            yield from _vectors(mixer_norm=shape.out)
    yield "mixer_in", mixer_in, (hidden,)
    yield "conv", filters, (shape.kernel,)
    yield "mixer_out", out, (shape.out,)
    of_bias = {"mixer_in_bias": mixer_in, "conv_bias": filters, "mixer_out_bias": out}
    for (field, rows), has in zip(of_bias.items(), shape.biases, strict=True):
        if has:
            yield field, rows, ()


def _vectors(**sizes: int) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
    for field, size in sizes.items():
        yield field, {field: size}, ()
