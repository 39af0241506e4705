"""kvrt's checked page files behind TensorRT-LLM's interface for connectors of its KV cache:

KvCacheConnectorConfig(
    connector_module="kvrt.integrations.tensorrt_llm",
    connector_scheduler_class="PageScheduler",
    connector_worker_class="PageWorker",
)
"""

__all__ = ["PageScheduler", "PageWorker"]


def __getattr__(name: str) -> object:
    """TensorRT-LLM is asked for when a class is: not by who looks at what is here."""
    if name in __all__:
        from kvrt.integrations.tensorrt_llm import connector

        return getattr(connector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
