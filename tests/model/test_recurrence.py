"""Recurrences in torch's own operators, for devices that have none, pass the kit."""

import pytest

from kvrt.model.decoder.recurrence import TorchRecurrence
from kvrt.spi import Device, DType, Recurrence
from kvrt.testing.suite.test_recurrence import (
    test_convolution,
    test_state_spaces,
    test_the_gated_delta_rule,
)

pytestmark = pytest.mark.extra  # tests/model/test_families.py compares them with transformers

__all__ = ["test_convolution", "test_state_spaces", "test_the_gated_delta_rule"]


@pytest.fixture
def device(cpu: Device) -> Device:
    return cpu


@pytest.fixture
def compute() -> DType:
    return "float32"


@pytest.fixture
def recurrence() -> Recurrence:
    return TorchRecurrence()
