"""The weights of a layer with a recurrence, in place of qkv:

mixer_in   [3 * channels, hidden]
conv       [channels, kernel]
"""

from collections.abc import Iterator

from kvrt.model.spec import ShortConvolution


def recurrence_weights(
    conv: ShortConvolution, hidden: int
) -> Iterator[tuple[str, dict[str, int], tuple[int, ...]]]:
    """The weights of a layer with a recurrence: field, rows by kind, and columns."""
    mixer_in, filters, out = (
        {"mixer_in": 3 * conv.channels},
        {"conv": conv.channels},
        {"mixer_out": hidden},
    )
    yield "mixer_in", mixer_in, (hidden,)
    yield "conv", filters, (conv.kernel,)
    yield "o", out, (conv.channels,)
    if conv.bias:
        yield "mixer_in_bias", mixer_in, ()
        yield "conv_bias", filters, ()
        yield "o_bias", out, ()
