"""What a runtime's options ask for in reuse and stores of KV pages, made."""

from importlib.metadata import version
from pathlib import Path

import torch

from kvrt.config import RuntimeConfig
from kvrt.kv.cache import KVCache
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.offload import Offload
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.tiers.config import parse_tiers
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.names import fingerprint
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.model.loader import Model
from kvrt.registry import candidates
from kvrt.spi import Device, DeviceInfo
from kvrt.units import MIB

STAGING_BYTES = 64 * MIB
STAGING_PAGES = 40


def page_fingerprint(model: Model, geometry: Geometry, info: DeviceInfo) -> bytes:
    """32 bytes that are the same wherever a page of the same tokens has the same bytes.

    Kernels of another architecture, or of another version, add numbers in another order.
    """
    model_parts = (model.fingerprint, model.decoder.dtype)
    kernels = next((c.origin for c in candidates() if c.name == info.backend), "")
    by = (info.backend, info.arch, kernels, version("kvrt"), torch.__version__)
    computed = repr((*model_parts, *by)).encode()
    return fingerprint(computed, str(geometry.format), repr(geometry.layout))


def own_folder(folder: str | Path, pages_of: bytes) -> Path:
    """Where in a folder that several models may share the pages of this one are."""
    return Path(folder).expanduser() / pages_of.hex()[:16]


def page_format(pages_of: bytes, geometry: Geometry) -> PageFormat:
    return PageFormat(pages_of, geometry.page_bytes, geometry.page_size)


def staging(device: Device, page_bytes: int) -> HostStore:
    """Host memory that pages on their way to and from a disk go through."""
    budget = max(STAGING_BYTES, STAGING_PAGES * page_bytes)
    return HostStore(device.copier, page_bytes, budget)


def make_reuse(config: RuntimeConfig) -> PrefixReuse | None:
    """None: every request computes all of its own."""
    if not config.prefix_cache:
        return None
    policy = EVICTIONS[config.prefix_cache_policy]()
    cost = MoveCost(config.preemption)
    return PrefixReuse(config.page_size, policy, cost, config.prefix_cache_ttl)


def make_offload(
    config: RuntimeConfig,
    device: Device,
    cache: KVCache,
    pages_of: bytes,
    reuse: PrefixReuse | None,
) -> Offload | None:
    """None: nothing leaves the device.

    Raises:
        StoreError: a folder cannot be used.
        ConfigError: host memory for less than one page was asked for.
    """
    if reuse is None or config.offload is None:
        return None
    tiers = parse_tiers(config.offload)
    page_bytes = cache.geometry.page_bytes
    budget, is_tier = tiers.host_bytes, tiers.host_bytes > 0
    host = HostStore(device.copier, page_bytes, budget) if is_tier else staging(device, page_bytes)
    form = page_format(pages_of, cache.geometry)
    disk = None
    if tiers.disk_path is not None:
        disk = DiskStore(
            PageFile.open(own_folder(tiers.disk_path, pages_of), form, budget=tiers.disk_bytes)
        )
    through = config.offload_write == "through"
    offload = Offload(
        device,
        cache,
        host,
        reuse.cost,
        disk,
        is_tier=is_tier,
        write_at_once=through or not is_tier,
        write_through=through,
    )
    reuse.tiers = offload
    return offload
