"""A runtime's parts, made as its options say and put together."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from kvrt.config import Environment, RuntimeConfig
from kvrt.engine.drafter import check_drafter, predictor_ratio
from kvrt.engine.engine import Engine
from kvrt.engine.events import Observers
from kvrt.engine.fingerprint import page_fingerprint, page_format
from kvrt.engine.planning import fitted
from kvrt.engine.prefixes import Prefixes
from kvrt.engine.sizing import check_room, limit_bytes, make_cache
from kvrt.engine.sleeping import LEASE_S
from kvrt.executor.interface import PageMemory
from kvrt.kv.cache import KVCache
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.index.eviction import EVICTIONS
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.memory import Memory
from kvrt.kv.offload import Offload
from kvrt.kv.pressure import Pressure
from kvrt.kv.tiers.config import TierConfig, parse_tiers
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.folder import own_folder
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.kv.tiers.remote.client import RemoteStore
from kvrt.kv.tiers.remote.key import store_key
from kvrt.model.loader import Model, load_model
from kvrt.model.progress import Progress
from kvrt.model.spec import ModelSpec
from kvrt.net.address import parse_address
from kvrt.ranks.joining import shard_of, threads_of
from kvrt.ranks.loading import load
from kvrt.ranks.others import Others
from kvrt.ranks.starting import Ranks
from kvrt.registry import open_device
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sharing.share import Share
from kvrt.sharing.tenant import Tenant
from kvrt.spi import Device, DeviceOptions, DType


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that callers know.

    Args:
        fingerprint: of all pages; see `page_fingerprint`.
        others: the other ranks, if there are several.
    """

    device: Device
    model: Model
    cache: KVCache
    engine: Engine
    prefixes: Prefixes
    fingerprint: bytes
    others: Others | None


def assemble(
    config: RuntimeConfig,
    stack: ExitStack,
    progress: Progress | None,
    still_wanted: Callable[[], None],
    on_failure: Callable[[], None] = lambda: None,
    observers: Observers | None = None,
) -> Assembly:
    """Open the device, load the model, size the KV memory; on all ranks, if there are several.

    Args:
        stack: closes what was made, also if something that comes later fails.
        progress: told about the bytes of a download, and of files as they are quantised.
        still_wanted: asked once the model is loaded; raises if nobody waits any more.
        on_failure: called, on another thread, if another rank fails.
        observers: of the engine.

    Raises:
        KvrtError: as `kvrt.Runtime`.
    """
    backend = Environment().backend_for(config.backend)
    device = open_device(
        backend,
        config.device,
        DeviceOptions(threads=threads_of(config), exact=config.activations == "exact"),
        check_layers=config.debug,
    )
    stack.callback(device.close)
    tenant = _join(config, device)
    if tenant is not None:
        stack.callback(tenant.close)

    drafter = _load_drafter(config, device, progress)
    if drafter is not None:
        stack.callback(drafter.decoder.close)
        stack.callback(drafter.resident.close)

    def room(spec: ModelSpec, dtype: DType, weights: int) -> None:
        smallest = check_room(config, device, spec, dtype, weights, drafter)
        if tenant is not None:
            own = 0 if drafter is None else drafter.weight_bytes
            tenant.take_soon(weights + own + smallest, LEASE_S)

    ranks = None
    if shard_of(config).ranks > 1:
        ranks = Ranks(config, device, stack, on_failure, still_wanted)
    experts = config.offload_experts
    model = load(
        config,
        device,
        progress=progress,
        offload_experts=None if experts is None else limit_bytes(experts, device.info),
        check_room=room,
        shard=shard_of(config),
        join=None if ranks is None else ranks.begin,
    )
    stack.callback(model.decoder.close)
    if not isinstance(model.vision, str):
        stack.callback(model.vision.close)
    stack.callback(model.resident.close)
    ratio = predictor_ratio(model) if config.predicts else None
    if drafter is not None:
        check_drafter(drafter, model)
        ratio = drafter.weight_bytes / model.weight_bytes
        model = replace(model, weight_bytes=model.weight_bytes + drafter.weight_bytes)
    still_wanted()
    if tenant is not None:  # the smallest cache takes its own again
        tenant.give(max(0, tenant.held - model.weight_bytes))
        tenant.take_soon(model.weight_bytes - tenant.held, LEASE_S)
    config = fitted(config, device.info, device.memory.info().free, model, drafter)
    executor, cache = make_cache(config, device, model, tenant, drafter, ranks)
    stack.callback(cache.close)
    fingerprint = page_fingerprint(model, cache.layouts, device.info, drafter)
    reuse = make_reuse(config, cache)
    offload = make_offload(config, executor, fingerprint, reuse)
    memory = Memory(cache, reuse, offload, tenant, make_pressure(device))
    stack.callback(memory.close)
    limits = Limits(config.max_batch_tokens, config.max_running)
    policy = POLICIES[config.policy]
    engine = Engine(model, executor, memory, limits, policy, ratio, observers)
    others = None if ranks is None else ranks.others
    return Assembly(device, model, cache, engine, Prefixes(engine), fingerprint, others)


def _join(config: RuntimeConfig, device: Device) -> Tenant | None:
    """None: the device is not shared."""
    if config.share is None:
        return None
    assert isinstance(config.share, Share), "a name has become one"
    return config.share.join(Path(config.model).name, device.info)


def _load_drafter(config: RuntimeConfig, device: Device, progress: Progress | None) -> Model | None:
    """A small model that drafts; None: there is none."""
    if config.draft_model is None:
        return None
    return load_model(
        config.draft_model,
        device,
        dtype=config.dtype,
        load_format=config.load_format,
        quantize=config.quantize,
        offline=config.offline,
        progress=progress,
        seed=config.seed or 0,
    )


def make_pressure(device: Device) -> Pressure | None:
    """None: the device's memory is not the machine's own."""
    if device.memory.info().others is None:
        return None
    return Pressure(device.memory.info, device.info.total_bytes)


def make_reuse(config: RuntimeConfig, cache: KVCache) -> PrefixReuse | None:
    """None: every request computes all of its own."""
    if not config.prefix_cache:
        return None
    policy = EVICTIONS[config.prefix_cache_policy]()
    cost = MoveCost(config.preemption)
    return PrefixReuse(cache.table.groups, policy, cost, config.prefix_cache_ttl)


def make_offload(
    config: RuntimeConfig,
    executor: PageMemory,
    fingerprint: bytes,
    reuse: PrefixReuse | None,
) -> Offload | None:
    """None: nothing leaves the device.

    Raises:
        StoreError: a folder cannot be used.
        ConfigError: host memory for less than one page was asked for, or the key of a store
            elsewhere cannot be read.
    """
    if reuse is None or (config.offload is None and config.remote_store is None):
        return None
    tiers = TierConfig() if config.offload is None else parse_tiers(config.offload)
    form = page_format(fingerprint, executor)
    is_tier = tiers.host_bytes > 0
    if is_tier:
        host = HostStore(executor, form.sizes, tiers.host_bytes)
    else:
        host = HostStore.staging(executor, form.sizes)
    disk = None
    if tiers.disk_path is not None:
        folder = own_folder(tiers.disk_path, fingerprint)
        disk = DiskStore(PageFile.open(folder, form, budget=tiers.disk_bytes))
    remote = None
    if config.remote_store is not None:
        address = parse_address(config.remote_store)
        key = None if config.remote_key is None else Path(config.remote_key)
        remote = RemoteStore(address, store_key(key, address), form)
    through = config.offload_write == "through"
    offload = Offload(
        executor,
        host,
        reuse.cost,
        disk,
        remote,
        is_tier=is_tier,
        write_at_once=through or not is_tier,
        write_through=through,
    )
    reuse.tiers = offload
    return offload
