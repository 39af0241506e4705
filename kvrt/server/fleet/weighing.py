"""What models need on each device, without keeping the event loop waiting."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvrt.config import RuntimeConfig
from kvrt.engine.weighing import Weighed, weigh
from kvrt.errors import KvrtError
from kvrt.server.fleet.places import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs.

    Args:
        at: of each device; None: it cannot be there.
    """

    at: Sequence[Weighed | None]

    @property
    def need(self) -> int:
        """Bytes, wherever it is."""
        return max((each.need for each in self.at if each is not None), default=0)

    @property
    def residue(self) -> int | None:
        """Bytes that it keeps while it sleeps; None: it cannot sleep on all devices."""
        there = [each for each in self.at if each is not None]
        if not there or any(each.device.torch_device != "cpu" for each in there):
            return None
        return max(each.smallest for each in there)

    @property
    def barred(self) -> frozenset[int]:
        """Devices that it cannot be on. One that can be on none is there all the same: whoever
        asks for it is told why."""
        found = {number for number, each in enumerate(self.at) if each is None}
        return frozenset(found) if len(found) < len(self.at) else frozenset()


async def weighed(config: RuntimeConfig, places: Sequence[Place]) -> Needs:
    """A model of a server, whose memory limits are of all models of a device.

    Raises:
        KvrtError: as `weigh`, if it can be on no device.
    """
    found: list[Weighed | None] = []
    errors: list[KvrtError] = []
    for place in places:
        try:
            found.append(
                await asyncio.to_thread(weigh, replace(place.on(config), memory_limit=None))
            )
        except KvrtError as error:
            errors.append(error)
            found.append(None)
            log.warning("%s cannot be on %s: %s", config.model, place.name, error)
    if len(errors) == len(places):
        raise errors[0]
    return Needs(found)


async def weighed_or_none(config: RuntimeConfig, places: Sequence[Place]) -> Needs:
    """As `weighed`; one that can be on no device says so when it is asked for."""
    try:
        return await weighed(config, places)
    except KvrtError:
        return Needs([None] * len(places))
