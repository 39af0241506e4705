"""The operator: ``python -m kvrt_operator --image IMAGE``."""

import asyncio
import logging

import kopf

from kvrt_operator.handlers import register
from kvrt_operator.settings import Settings, read_settings


def main() -> None:
    """Runs until SIGTERM."""
    settings = read_settings()
    log = logging.getLogger("kvrt_operator")
    usual = {"logger": log, "settings": kopf.OperatorSettings()}
    info = kopf.login_with_service_account(**usual) or kopf.login_with_kubeconfig(**usual)
    if info is None:
        raise SystemExit("no service account and no kubeconfig say where the cluster is")
    kopf.configure(verbose=False)
    asyncio.run(_run(settings, info))


async def _run(settings: Settings, info: kopf.ConnectionInfo) -> None:
    await kopf.operator(
        registry=register(settings, info),
        clusterwide=True,
        standalone=True,
        liveness_endpoint=settings.liveness or None,
    )


if __name__ == "__main__":
    main()
