"""What of vLLM the connector lives by, asked for before it is used."""

import importlib

from kvrt.errors import ConfigError

TESTED = ("0.32",)
"""Versions of vLLM that the connector's tests have run with."""

MEMBERS = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base.KVConnectorBase_V1": (
        "get_mem_pool_context", "register_kv_caches", "handle_preemptions",
        "get_handshake_metadata", "build_connector_worker_meta", "set_xfer_handshake_metadata",
        "bind_gpu_block_pool", "get_num_new_matched_tokens", "has_pending_block_frees",
        "has_pending_push_work", "build_connector_meta", "update_connector_output",
    ),
    "vllm.v1.core.block_pool.BlockPool": (
        "get_num_free_blocks", "get_new_blocks", "free_blocks",
    ),
}  # fmt: skip
"""What it overrides or calls, by class."""


def check_contract(version: str) -> None:
    """vLLM is one that the connector was tested with, and has what it needs.

    Raises:
        ConfigError: it is not, or has not.
    """
    if ".".join(version.split(".")[:2]) not in TESTED:
        raise ConfigError(
            f"kvrt's connector was tested with vLLM {', '.join(TESTED)}, and this is {version}",
            fix="install another vLLM, or a newer kvrt",
        )
    for path, names in MEMBERS.items():
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name, None)
        missing = [each for each in names if not hasattr(found, each)]
        if missing:
            raise ConfigError(f"vLLM {version} has no {', '.join(missing)} in {name}")
