"""The connector itself: vLLM's calls, passed on to `ground` and `balloon`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import Tensor
from torch.overrides import TorchFunctionMode
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from kvrt.errors import ConfigError
from kvrt.integrations.vllm.balloon import Balloon, Orders
from kvrt.integrations.vllm.contract import CONNECTOR, check_contract
from kvrt.integrations.vllm.figures import ElasticMetrics, ElasticStats
from kvrt.integrations.vllm.ground import BlockMemory, Layout
from kvrt.integrations.vllm.obeying import obey
from kvrt.integrations.vllm.options import Options
from kvrt.integrations.vllm.telling import Telling
from kvrt.spi import DeviceInfo
from kvrt.units import parse_bytes

STORED_AFTER = 2
"""vLLM's connector for offloading copies a block so many steps after that in which its request had
ended, and knows only of vLLM's own requests that the block may be another's by then."""


@dataclass
class OrdersMetadata(KVConnectorMetadata):
    """From the scheduler to the worker."""

    orders: Orders


@dataclass
class ReportMetadata(KVConnectorWorkerMetadata):
    """From the worker to the scheduler: see `Balloon.reported`."""

    number: int
    held: int

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        raise NotImplementedError("there is one worker")


@dataclass
class LayoutMetadata(KVConnectorHandshakeMetadata):
    """From the worker to the scheduler, once."""

    layout: Layout
    device: DeviceInfo


class Allocation(TorchFunctionMode):
    """Answers the one call that allocates vLLM's KV cache with a tensor over addresses alone."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: BlockMemory | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.zeros or kwargs.get("dtype") is not torch.int8:
            return func(*args, **kwargs)
        if self.memory is not None:
            raise ConfigError("vLLM allocates its KV cache in more than one piece")
        self.memory = BlockMemory(args[0], torch.device(kwargs["device"]))
        return self.memory.tensor

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None and self.memory is None:
            raise ConfigError("vLLM did not allocate its KV cache as kvrt's connector expects")


class ElasticConnector(KVConnectorBase_V1, SupportsHMA):
    """See `kvrt.integrations.vllm`. Its options are those of `Options`."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        check_contract(vllm.__version__, CONNECTOR)
        super().__init__(vllm_config, role, kv_cache_config)
        if vllm_config.parallel_config.world_size > 1:
            raise ConfigError("kvrt's connector serves one worker; this vLLM has more")
        self._options = Options.read(self._kv_transfer_config.kv_connector_extra_config)
        self._block_bytes = kv_cache_config.kv_cache_tensors[0].size // kv_cache_config.num_blocks
        self._allocation = Allocation()
        self._known: LayoutMetadata | None = None
        self._done = 0
        self._balloon: Balloon
        self._telling: Telling | None = None

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str:
        """All layers of a block together, where the attention can have it so: then a chunk is of
        few blocks. vLLM's connector for offloading wants them apart."""
        given = vllm_config.kv_transfer_config.kv_connector_extra_config
        return "LBHNC" if Options.read(given).beside_tiers else "BLHNC"

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # --- the worker ----------------------------------------------------------------------------

    @property
    def _memory(self) -> BlockMemory:
        assert self._allocation.memory is not None, "the KV cache was allocated"
        return self._allocation.memory

    def get_mem_pool_context(self) -> AbstractContextManager[Any]:
        return self._allocation

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        memory = self._memory
        layout = memory.lay([*kv_caches.values()], self._block_bytes)
        self._known = LayoutMetadata(layout, memory.device_info)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._known

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """The first thing of a step."""
        assert isinstance(kv_connector_metadata, OrdersMetadata)
        orders = kv_connector_metadata.orders
        if orders.number == self._done:
            return
        self._done, after = orders.number, None
        where = self._memory.tensor.device
        if orders.gone and where.type != "cpu":
            event = torch.Event(where)
            event.record()
            after = event.query
        self._memory.change(orders.gone, orders.new, after)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata:
        return ReportMetadata(self._done, self._memory.held)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None: ...

    def wait_for_save(self) -> None: ...

    # --- the scheduler -------------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        options = self._options
        keep = _bytes(options.keep) // self._block_bytes
        self._balloon = Balloon(
            gpu_block_pool,
            headroom=options.headroom,
            keep=keep,
            linger=options.linger,
            delay=STORED_AFTER if options.beside_tiers else 0,
        )

    def set_xfer_handshake_metadata(
        self, metadata: dict[int, KVConnectorHandshakeMetadata]
    ) -> None:
        (known,) = metadata.values()
        assert isinstance(known, LayoutMetadata)
        options, config = self._options, self._vllm_config
        limit, share = options.memory_limit, options.share
        name = Path(config.model_config.model).name
        tenant = None if share is None else share.join(name, known.device)
        self._balloon.lay(
            known.layout,
            limit_bytes=None if limit is None else _bytes(limit),
            longest=self._blocks_for(config.model_config.max_model_len),
            tenant=tenant,
        )
        if tenant is not None:
            self._telling = Telling(tenant)
            tenant.listen(partial(obey, self._balloon, tenant))

    def _blocks_for(self, tokens: int) -> int:
        """Of all groups of layers together."""
        return sum(
            -(-tokens // group.kv_cache_spec.block_size)
            for group in self._kv_cache_config.kv_cache_groups
        )

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Before a request is admitted that waits: let it have what it is about to allocate."""
        self._balloon.want(self._blocks_for(request.num_tokens - num_computed_tokens) + 1)
        return 0, False

    def has_pending_block_frees(self) -> bool:
        """Before a running request is preempted, since it finds no free block."""
        return self._balloon.more()

    def on_new_request(self, request: Any) -> None:
        if self._telling is not None:
            self._telling.came(request)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        orders = self._balloon.orders(len(scheduler_output.num_scheduled_tokens))
        if self._telling is not None:
            self._telling.scheduled(scheduler_output, self._balloon.figures)
        return OrdersMetadata(orders)

    def update_connector_output(self, connector_output: Any) -> None:
        found = connector_output.kv_connector_worker_meta
        if isinstance(found, ReportMetadata):
            self._balloon.reported(found.number, found.held)

    def has_pending_push_work(self) -> bool:
        """Keeps an engine without requests going, until its memory is given back."""
        return not self._balloon.settled

    def update_state_after_alloc(
        self, request: Any, blocks: Any, num_external_tokens: int
    ) -> None: ...

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._telling is not None:
            self._telling.ended(request)
        return False, None

    # --- for people ----------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> ElasticStats | None:
        if self.role != KVConnectorRole.SCHEDULER:
            return None
        return ElasticStats.of(self._balloon.figures())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ElasticStats:
        return ElasticStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ElasticMetrics:
        return ElasticMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _bytes(size: int | str) -> int:
    return size if isinstance(size, int) else parse_bytes(size)


with suppress(ValueError):  # it is known already
    # A MultiConnector finds the statistics of its connectors by their names alone.
    KVConnectorFactory.register_connector(
        "ElasticConnector", "kvrt.integrations.vllm", "ElasticConnector"
    )
