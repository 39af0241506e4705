"""What says that two pages of the same tokens have the same bytes."""

from collections.abc import Sequence
from importlib.metadata import version

import torch

from kvrt.executor.interface import PageMemory
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import fingerprint
from kvrt.model.loader import Model
from kvrt.registry import candidates
from kvrt.spi import DeviceInfo, PageLayout


def page_fingerprint(
    model: Model, layouts: Sequence[PageLayout], info: DeviceInfo, drafter: Model | None = None
) -> bytes:
    """32 bytes that are the same wherever pages of the same tokens have the same bytes.

    Args:
        layouts: of each group of layers.
        drafter: a model that drafts, whose groups are the last.

    Kernels of another architecture, or of another version, add numbers in another order.
    """
    model_parts: tuple[str, ...] = (model.fingerprint, model.decoder.dtype)
    if drafter is not None:
        model_parts += (drafter.fingerprint, drafter.decoder.dtype)
    kernels = next((c.origin for c in candidates() if c.name == info.backend), "")
    by = (info.backend, info.arch, kernels, version("kvrt"), torch.__version__)
    computed = repr((*model_parts, *by)).encode()
    return fingerprint(computed, str(layouts[0].format), repr(layouts))


def page_format(fingerprint: bytes, executor: PageMemory) -> PageFormat:
    """What an executor's pages in folders have in common, of all groups of layers."""
    return PageFormat(fingerprint, executor.host_bytes, executor.layouts[0].page_size)
