"""Whether what a command needs is installed."""

from importlib.util import find_spec

from kvrt.errors import ConfigError

BRINGS = {
    "serve": ("starlette", "uvicorn", "msgspec", "prometheus_client"),
    "route": ("starlette", "uvicorn", "msgspec", "prometheus_client", "httpx", "zmq"),
    "client": ("httpx", "msgspec"),
    "top": ("textual",),
    "data": ("msgspec",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}
"""Modules, by the extra of kvrt that installs them."""


def check_extra(command: str, extra: str = "serve", instead: str = "") -> None:
    """Raise `ConfigError` if what a command needs is not installed.

    Args:
        instead: what can be done without it.
    """
    missing = [name for name in BRINGS[extra] if not _is_there(name)]
    if missing:
        raise ConfigError(
            f"kvrt {command} needs what is not installed: {', '.join(missing)}",
            fix=f"pip install 'kvrt[{extra}]'" + (f", or {instead}" if instead else ""),
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False
