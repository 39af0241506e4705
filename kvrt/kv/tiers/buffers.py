"""The memory of pages, as whoever keeps them sees it."""

import sys
from typing import TYPE_CHECKING

import numpy as np

from kvrt.errors import ContractError
from kvrt.kv.tiers.blockfile import Bytes

if TYPE_CHECKING:
    from torch import Tensor


def bytes_of(data: "Tensor | Bytes", size: int) -> Bytes:
    """The same memory as uint8 [size].

    Raises:
        ContractError: it is of another size, not contiguous, or not in host memory.
    """
    if isinstance(data, np.ndarray):
        flat = data.reshape(-1).view(np.uint8) if data.flags.c_contiguous else None
    else:
        usable = data.device.type == "cpu" and data.is_contiguous()
        flat = data.view(-1).view(sys.modules["torch"].uint8).numpy() if usable else None
    if flat is None:
        raise ContractError("a page must be contiguous and in host memory")
    if flat.nbytes != size:
        raise ContractError(f"{flat.nbytes} bytes are no page of {size} bytes")
    return flat
