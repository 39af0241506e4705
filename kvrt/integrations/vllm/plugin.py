"""What vLLM calls in each of its processes where kvrt is installed."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrt.integrations.vllm.routes import Routes

ATTENTION = "KVRT_VLLM_ATTENTION"
"""``1``: kvrt's attention serves on CPUs. Nothing else changes what vLLM does by itself."""


def attends(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether kvrt's attention is asked for."""
    return environ.get(ATTENTION) == "1"


def register(environ: Mapping[str, str] = os.environ) -> None:
    """Do what the environment asks for. May be called again."""
    if not attends(environ):
        return
    import vllm
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from kvrt.integrations.vllm.contract import ATTENDING, check_contract

    check_contract(vllm.__version__, ATTENDING)
    path = "kvrt.integrations.vllm.attention.PagedBackend"
    register_backend(AttentionBackendEnum.CPU_ATTN, path)


def endpoints() -> "Routes":
    """Routes on vLLM's server, which asks for them where ``VLLM_PLUGINS`` names kvrt.

    Raises:
        ConfigError: this vLLM is none that they were tested with.
    """
    import vllm

    from kvrt.integrations.vllm.contract import SERVING, check_contract
    from kvrt.integrations.vllm.routes import Routes

    check_contract(vllm.__version__, SERVING)
    return Routes()
