"""A deployment of Ray Serve whose replicas have a runtime each."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from kvrt.aio.runtime import AsyncRuntime
from kvrt.config import RuntimeConfig
from kvrt.engine.prompts import Prompt
from kvrt.outputs import Delta, Result
from kvrt.sampling import SamplingParams

AT_ONCE = 256
"""Requests that Ray gives a replica at once: as many as a runtime computes together by itself."""

HEALTH_SECONDS = 2.0
"""So often Ray asks a replica whether it lives."""

ROUTER = "kvrt.integrations.ray.choosing:PrefixRouter"


class Replica:
    """One runtime. Ray makes it in an actor, and calls it there on one event loop.

    Args:
        options: of `kvrt.RuntimeConfig`.
    """

    async def __init__(self, options: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._runtime = await AsyncRuntime.open(config=RuntimeConfig(**options))

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None, options: Mapping[str, Any]
    ) -> Result:
        """See `kvrt.AsyncRuntime.generate`."""
        return await self._runtime.generate(prompt, params, **options)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Delta]:
        """See `kvrt.AsyncRuntime.stream`. Ray ends it where the caller cancels, and with it the
        request."""
        async with await self._runtime.stream(prompt, params, **options) as stream:
            async for delta in stream:
                yield delta

    def check_health(self) -> None:
        """Ray ends a replica for which this raises, and starts another in its place."""
        if (ended := self._runtime.runtime.ended) is not None:
            raise RuntimeError(f"the engine has ended: {ended}")

    def __del__(self) -> None:
        """Ray calls it where it ends a replica that is not needed any more."""
        if hasattr(self, "_runtime"):  # else it could not be made
            self._runtime.runtime.close()


def application(
    model: str | Path = "tiny",
    *,
    replicas: int = 2,
    cpus: int = 1,
    gpus: float = 0,
    deployment: Mapping[str, Any] | None = None,
    **options: Any,
) -> Application:
    """What `ray.serve.run` takes, to be asked through ``Answers``.

    Args:
        model: a folder or file that all nodes have, a hub id, or ``tiny``.
        replicas: how many runtimes.
        cpus, gpus: that Ray keeps for each. It is told so many threads as it has processors.
        deployment: further options of ``ray.serve.deployment``, such as ``autoscaling_config``.
        options: of `kvrt.RuntimeConfig`.

    Raises:
        ConfigError: an option has a value that cannot be.
    """
    RuntimeConfig(model=model, **options)  # better here than in a replica, which Ray starts again
    chosen: dict[str, Any] = {
        "name": "kvrt",
        "num_replicas": replicas,
        "max_ongoing_requests": options.get("max_running", AT_ONCE),
        "health_check_period_s": HEALTH_SECONDS,
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
    }
    chosen |= deployment or {}
    if "autoscaling_config" in chosen:  # which says how many there are
        del chosen["num_replicas"]
    made = serve.deployment(**chosen)(Replica)
    return made.bind({"model": str(model), "threads": cpus, **options})
