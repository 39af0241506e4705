"""kvrt's checked page files as a storage plug-in of LMCache, in its YAML:

storage_plugins: ["kvrt"]
extra_config:
  storage_plugin.kvrt.module_path: kvrt.integrations.lmcache
  storage_plugin.kvrt.class_name: ChunkBackend
  kvrt.tiers: disk:/var/cache/kv:200GiB
  kvrt.identity: MODEL@COMMIT
"""

__all__ = ["ChunkBackend"]


def __getattr__(name: str) -> object:
    """LMCache is asked for when the backend is: not by who looks at what is here."""
    if name == "ChunkBackend":
        from kvrt.integrations.lmcache.backend import ChunkBackend

        return ChunkBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
