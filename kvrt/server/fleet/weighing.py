"""What models need, without keeping the event loop waiting."""

import asyncio
import logging
from dataclasses import replace

from kvrt.config import RuntimeConfig
from kvrt.engine.weighing import Weighed, weigh
from kvrt.errors import KvrtError

log = logging.getLogger(__name__)


async def weighed(config: RuntimeConfig) -> Weighed:
    """A model of a server, whose memory limit is of all its models. Raises as `weigh`."""
    return await asyncio.to_thread(weigh, replace(config, memory_limit=None))


async def weighed_or_none(config: RuntimeConfig) -> Weighed | None:
    """None: it cannot be loaded, it seems."""
    try:
        return await weighed(config)
    except KvrtError as error:
        log.warning("%s: %s", config.model, error)
        return None
