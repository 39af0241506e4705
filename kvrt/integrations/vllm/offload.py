"""kvrt's host and disk tiers behind vLLM's own offloading connector.

    core      `Manager`: which blocks are where; reads and writes the disk (`shelf`)
    worker    `Worker`: copies blocks to host memory that both map, and back

A block is found only once it is in host memory and its checksum was right: nothing that is loaded
can fail, which vLLM's connector has no way to be told.
"""

import time
from collections.abc import Collection
from typing import Any

import vllm
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    LookupResult,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    TransferResult,
    get_offload_group_idx,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvrt.errors import ConfigError
from kvrt.integrations.pages import model_identity, open_pages, stored_name
from kvrt.integrations.tiers import TierOptions
from kvrt.integrations.vllm.contract import OFFLOADING, check_contract
from kvrt.integrations.vllm.plugin import attends
from kvrt.integrations.vllm.region import Region, open_region
from kvrt.integrations.vllm.shelf import Found, Shelf
from kvrt.kv.tiers.host import STAGING_BYTES, STAGING_PAGES, HostPage, HostStore
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.stores import Stores

RESULTS = {
    Found.HERE: LookupResult.HIT,
    Found.ARRIVING: LookupResult.HIT_PENDING,
    Found.COMING: LookupResult.RETRY,
    Found.NOWHERE: LookupResult.MISS,
}

COUNTERS = {
    "in_memory": "Blocks that requests found in host memory.",
    "from_disk": "Blocks that were read from disk for requests.",
    "lost": "Blocks on disk that were damaged or could not be read.",
    "kept": "Blocks that were copied to host memory.",
    "refused": "Times that there was no room in host memory for a block.",
}
GAUGES = {
    "host_bytes": "Host memory in use for blocks.",
    "disk_bytes": "Disk space in use for blocks.",
    "disk_paused": "1 while the disk takes nothing, because it fails.",
}


class Places(LoadStoreSpec):
    """Where blocks are in memory that both processes map.

    Args:
        path: of the memory.
        nbytes: of all of it.
        starts: of each block, in bytes.
    """

    def __init__(self, path: str, nbytes: int, starts: list[int]) -> None:
        self.path, self.nbytes, self.starts = path, nbytes, starts


class TierSpec(OffloadingSpec):
    """See the module. Its options are those of `TierOptions`, beside vLLM's own."""

    def __init__(self, config: Any) -> None:
        check_contract(vllm.__version__, OFFLOADING)
        super().__init__(config)
        self._options = TierOptions.read(self.extra_config)
        groups = len(config.groups)
        if config.parallel.world_size > 1:
            raise ConfigError("kvrt's tiers serve one worker; this vLLM has more")
        if self.blocks_per_chunk != 1:
            raise ConfigError(
                "kvrt's tiers keep blocks as they are", fix="leave out vLLM's block_size option"
            )
        if config.worker_kv_bytes_per_block % groups:
            raise ConfigError("kvrt's tiers keep groups of layers whose blocks are of one size")
        self._sizes = (config.worker_kv_bytes_per_block // groups,) * groups

    def get_manager(self) -> OffloadingManager:
        config, tiers = self.config, self._options.tiers
        disk = None
        if tiers.disk_path is not None:
            layout = (
                *(config.model.dtype, config.kv_cache_layout, self.tokens_per_block),
                *(tuple(group.layer_names for group in config.groups), self._sizes),
                *(vllm.__version__, current_platform.get_device_name(), attends()),
            )
            model = model_identity(config.model.name, self._options.identity)
            disk = open_pages(
                tiers.disk_path, model, layout, self._sizes,
                budget=tiers.disk_bytes, compress=self._options.compress,
            )  # fmt: skip
        nbytes = tiers.host_bytes or max(STAGING_BYTES, STAGING_PAGES * max(self._sizes))
        region = Region(nbytes)
        host = HostStore(region, self._sizes, nbytes, slab_bytes=nbytes)
        groups = [group.group_id for group in config.groups]
        return Manager(Stores(host, disk, write_at_once=True), region, groups)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return Worker(kv_caches, self._sizes)

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        counters = {_metric(name): OffloadingCounterMetadata(doc) for name, doc in COUNTERS.items()}
        gauges = {_metric(name): OffloadingGaugeMetadata(doc) for name, doc in GAUGES.items()}
        return {**counters, **gauges}


class Manager(OffloadingManager):
    """vLLM's calls, passed on to a `Shelf`.

    Args:
        stores: where blocks are.
        region: the memory of those that are on the host.
        groups: vLLM's numbers of the groups of layers whose blocks are kept.
    """

    def __init__(self, stores: Stores, region: Region, groups: list[int]) -> None:
        self._stores, self._region, self._groups = stores, region, groups
        self._shelf = Shelf(stores)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        return RESULTS[self._shelf.look(self._name(key), req_context.req_id)]

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        disk = self._shelf.fetched(self._name(key), req_context.req_id)
        return CacheHitSource.DISK if disk else CacheHitSource.HOST

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        return self._places(self._shelf.lend(map(self._name, keys), req_context.req_id))

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._shelf.returned(map(self._name, keys), req_context.req_id)

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._shelf.touch(map(self._name, keys))

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput:
        by_name = {self._name(key): key for key in keys}
        pages = self._shelf.offer(by_name)
        taken = [by_name[page.name] for page in pages]
        return PrepareStoreOutput(taken, self._places(pages), [])

    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        self._shelf.arrived(map(self._name, keys), success)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._shelf.ended(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._shelf.poll()

    def reset_cache(self) -> None:
        self._shelf.forget()

    def get_stats(self) -> OffloadingConnectorStats:
        stats, counts = OffloadingConnectorStats(), self._shelf.take_counts()
        for name in COUNTERS:
            if count := getattr(counts, name):
                stats.increase_counter(_metric(name), count)
        host, disks, _ = self._stores.stats()
        stats.set_gauge(_metric("host_bytes"), host.used_bytes)
        stats.set_gauge(_metric("disk_bytes"), sum(disk.used_bytes for disk in disks))
        stats.set_gauge(_metric("disk_paused"), int(any(disk.paused for disk in disks)))
        return stats

    def shutdown(self) -> None:
        self._shelf.close()
        self._region.close()

    def _name(self, key: OffloadKey) -> StoredName:
        return stored_name(key, self._groups.index(get_offload_group_idx(key)))

    def _places(self, pages: list[HostPage]) -> Places:
        starts = [self._region.place_of(page.data) for page in pages]
        return Places(self._region.path, self._region.nbytes, starts)


class Worker(OffloadingWorker):
    """Copies, one after the other: each is done when it was submitted.

    Args:
        kv_caches: vLLM's view of its blocks.
        sizes: of each group, bytes of a block.
    """

    def __init__(self, kv_caches: CanonicalKVCaches, sizes: tuple[int, ...]) -> None:
        self._groups: list[list[Tensor]] = []
        for refs, size in zip(kv_caches.group_data_refs, sizes, strict=True):
            parts = [
                kv_caches.tensors[ref.tensor_idx].tensor[:, : ref.page_size_bytes] for ref in refs
            ]
            if (found := sum(part.shape[1] for part in parts)) > size:
                raise ConfigError(f"a block has {found} bytes, and {size} were expected")
            self._groups.append(parts)
        self._region: tuple[str, Tensor] | None = None
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec, dst_spec, to_blocks=False)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, dst_spec, src_spec, to_blocks=True)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None: ...

    def _copy(self, job: int, blocks: GPULoadStoreSpec, places: Places, *, to_blocks: bool) -> bool:
        begun, nbytes = time.perf_counter(), 0
        if self._region is None or self._region[0] != places.path:
            self._region = places.path, open_region(places.path, places.nbytes)
        memory = self._region[1].view(self._groups[0][0].dtype)
        groups = [at for at, count in enumerate(blocks.group_sizes) for _ in range(count)]
        for group, block, start in zip(groups, blocks.block_ids, places.starts, strict=True):
            at = start
            for part in self._groups[group]:
                there, here = memory[at : at + part.shape[1]], part[int(block)]
                (here if to_blocks else there).copy_(there if to_blocks else here)
                at += part.shape[1]
            nbytes += at - start
        self._done.append(TransferResult(job, True, nbytes, time.perf_counter() - begun))
        return True


def _metric(name: str) -> str:
    return f"kvrt:offload_{name}"
