"""Devices that stand in front of a device. Each is itself a `kvrt.spi.Device`, so they stack.

Checked   checks every argument once, so that no backend has to
Named     says whose fault it is when a device raises something
Traced    tells a sink about every call
Wrapper   forwards everything; the base for wrappers that change something
"""

from kvrt.wrappers.checked import Checked
from kvrt.wrappers.named import Named
from kvrt.wrappers.traced import Call, Traced
from kvrt.wrappers.wrapper import Wrapper

__all__ = ["Call", "Checked", "Named", "Traced", "Wrapper"]
