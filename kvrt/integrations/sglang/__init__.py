"""kvrt's checked page files as the storage of SGLang's hierarchical cache (HiCache).

    python -m sglang.launch_server --model-path FOLDER --enable-hierarchical-cache \\
        --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
            "backend_name": "kvrt", "module_path": "kvrt.integrations.sglang",
            "class_name": "PageStorage", "tiers": "disk:/var/cache/kv:200GiB"}'
"""

__all__ = ["PageStorage"]


def __getattr__(name: str) -> object:
    """SGLang is asked for when the storage is: not by who looks at what is here."""
    if name == "PageStorage":
        from kvrt.integrations.sglang.storage import PageStorage

        return PageStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
