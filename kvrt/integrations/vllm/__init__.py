"""Elastic KV memory for vLLM as it is, by its own interface for connectors: nothing is patched.

    vllm serve MODEL --kv-cache-memory-bytes 64G --kv-transfer-config '{
        "kv_connector": "ElasticConnector",
        "kv_connector_module_path": "kvrt.integrations.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"share": "gpu0:40GiB"}}'

    worker      the one tensor of vLLM's KV cache is a span of addresses without memory (`ground`);
                a step begins with memory going from under some blocks and coming under others
    scheduler   blocks without memory are blocks that the connector holds (`balloon`): it lets go of
                them before vLLM allocates, and takes them again when nobody uses them

vLLM's prefix cache, preemption and hashing see more or fewer free blocks, and nothing else.

Beside it, `TierSpec` puts kvrt's host and disk tiers behind vLLM's own `OffloadingConnector`
(`offload`, `shelf`, `region`).
"""

__all__ = ["ElasticConnector", "TierSpec"]


def __getattr__(name: str) -> object:
    """vLLM is asked for when the connector is: not by who looks at what is here."""
    if name == "ElasticConnector":
        from kvrt.integrations.vllm.connector import ElasticConnector

        return ElasticConnector
    if name == "TierSpec":
        from kvrt.integrations.vllm.offload import TierSpec

        return TierSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
