"""Attention over values that have a width of their own, against plain arithmetic."""

from dataclasses import replace

import pytest

from kvrt.spi import Device, KVFormat

from .test_attention import SMALL, check


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "shared"),
    [
        (64, 32, False),
        (48, 128, False),
        (64, 48, True),
        (48, 48, True),
        (320, 256, True),
        (576, 512, True),
    ],
)
@pytest.mark.parametrize("kv", ["float32", "int4"])
def test_values_have_a_width_of_their_own_or_are_the_beginning_of_the_keys(
    device: Device, head_dim: int, value_dim: int, shared: bool, kv: KVFormat
) -> None:
    """Contexts in one segment and in two, and many tokens."""
    case = replace(SMALL, contexts=(20, 300, 30), head_dim=head_dim, value_dim=value_dim, kv=kv)
    check(device, replace(case, shared=shared, heads=2))
