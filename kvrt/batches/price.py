"""What work costs, by the hour or by the energy."""

import re
from dataclasses import dataclass
from typing import Literal

from kvrt.errors import ConfigError
from kvrt.machine.energy import JOULES_PER_KWH

PRICE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)/(h|kWh)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Price:
    """What work costs.

    Args:
        amount: of whatever money, for each unit.
        unit: an hour of the machine, or a kilowatt-hour of its processors.
    """

    amount: float
    unit: Literal["h", "kWh"]

    @classmethod
    def read(cls, text: str) -> "Price":
        """From ``1.20/h`` or ``0.30/kWh``.

        Raises:
            ConfigError: it is neither.
        """
        match = PRICE.fullmatch(text)
        if match is None:
            raise ConfigError(
                "a price is a number for an hour or a kilowatt-hour", fix="as 1.20/h or 0.30/kWh"
            )
        return cls(float(match[1]), "h" if match[2] == "h" else "kWh")

    def of(self, seconds: float, joules: float | None) -> float | None:
        """What that costs; None: the energy is not known."""
        if self.unit == "h":
            return self.amount * seconds / 3600
        return None if joules is None else self.amount * joules / JOULES_PER_KWH
