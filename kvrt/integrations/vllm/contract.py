"""What of vLLM the connector, the tiers, the attention and the routes live by, asked for before it
is used."""

import importlib
from collections.abc import Mapping

from kvrt.errors import ConfigError

TESTED = ("0.32",)
"""Versions of vLLM that the tests of all have run with."""

Members = Mapping[str, tuple[str, ...]]
"""What is overridden or called, by class."""

CONNECTOR: Members = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base.KVConnectorBase_V1": (
        "get_mem_pool_context", "register_kv_caches", "handle_preemptions",
        "get_handshake_metadata", "build_connector_worker_meta", "set_xfer_handshake_metadata",
        "bind_gpu_block_pool", "get_num_new_matched_tokens", "has_pending_block_frees",
        "has_pending_push_work", "build_connector_meta", "update_connector_output",
        "on_new_request", "get_kv_connector_stats", "build_kv_connector_stats",
        "build_prom_metrics",
    ),
    "vllm.v1.core.block_pool.BlockPool": (
        "get_num_free_blocks", "get_new_blocks", "free_blocks",
    ),
}  # fmt: skip
"""Of the connector."""

OFFLOADING: Members = {
    "vllm.v1.kv_offload.base.OffloadingManager": (
        "lookup", "get_load_source", "prepare_load", "complete_load", "touch", "prepare_store",
        "complete_store", "on_new_request", "on_request_finished", "on_schedule_end",
        "reset_cache", "get_stats", "shutdown",
    ),
    "vllm.v1.kv_offload.base.OffloadingWorker": (
        "submit_store", "submit_load", "get_finished", "wait",
    ),
    "vllm.v1.kv_offload.base.OffloadingSpec": (
        "get_manager", "get_worker", "build_metric_definitions",
    ),
}  # fmt: skip
"""Of the tiers."""

ATTENDING: Members = {
    "vllm.v1.attention.backend.AttentionBackend": (
        "get_name", "get_impl_cls", "get_builder_cls", "get_supported_kernel_block_sizes",
        "supported_kv_cache_layouts", "forward_includes_kv_cache_update",
    ),
    "vllm.v1.attention.backend.AttentionMetadataBuilder": ("build",),
    "vllm.v1.attention.backends.registry.AttentionBackendEnum": ("CPU_ATTN",),
}  # fmt: skip
"""Of the attention."""

SERVING: Members = {
    "vllm.plugins.endpoint_plugins.interface.EndpointPlugin": ("attach_router", "init_state"),
}
"""Of the routes."""


def check_contract(version: str, members: Members) -> None:
    """vLLM is one that this was tested with, and has what it needs.

    Raises:
        ConfigError: it is not, or has not.
    """
    if ".".join(version.split(".")[:2]) not in TESTED:
        raise ConfigError(
            f"kvrt was tested with vLLM {', '.join(TESTED)}, and this is {version}",
            fix="install another vLLM, or a newer kvrt",
        )
    for path, names in members.items():
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name, None)
        missing = [each for each in names if not hasattr(found, each)]
        if missing:
            raise ConfigError(f"vLLM {version} has no {', '.join(missing)} in {name}")
