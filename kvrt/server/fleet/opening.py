"""All models of a server are weighed, and none is loaded."""

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence

from kvrt.config import RuntimeConfig
from kvrt.engine.sizing import limit_bytes
from kvrt.errors import ConfigError
from kvrt.server.desk import Desk
from kvrt.server.fleet.models import Models
from kvrt.server.fleet.naming import Folder
from kvrt.server.fleet.places import Device, Place, places_of
from kvrt.server.fleet.states import Fleet
from kvrt.server.fleet.weighing import Needs, weighed, weighed_or_none
from kvrt.server.fleet.worth import LeastWorth
from kvrt.sharing.share import Share, sweep

OWN = "serve-"
"""How the names of shares begin that are a server's own."""

ROOM = 0.8
"""Of the memory that is free at the start, models have so much unless it is said otherwise: the
rest is for what steps compute in, and for whoever else is on the machine."""


async def open_models(
    configs: Mapping[str, RuntimeConfig],
    folder: Folder | None,
    desk: Desk,
    template: str | None = None,
) -> Models:
    """Weigh all models, and load none.

    Raises:
        KvrtError: one that was named is not there, or damaged; there is none, or a device is not.
    """
    found = {**configs, **({} if folder is None else folder.models()), **configs}
    if not found:
        raise ConfigError("there is no model to serve", fix="name one, or a folder of some")
    first = next(iter(configs.values()), None) or next(iter(found.values()))
    places = places_of(desk.config.devices, first)
    needs: dict[str, Needs] = {}
    for name, each in found.items():
        weigh = weighed if name in configs else weighed_or_none
        needs[name] = await weigh(each, places)
    await asyncio.to_thread(sweep, OWN)  # what servers have left that were killed
    for number, place in enumerate(places):
        if all(each.at[number] is None for each in needs.values()):
            await weighed(first, [place])  # which says why
    devices = _devices(places, [*needs.values()], first)
    models = Models(
        Fleet(
            [device.room for device in devices],
            policy=LeastWorth(desk.config.objective),
            most_waiting=desk.config.max_waiting,
        ),
        found,
        folder,
        desk,
        template,
        devices,
    )
    for name, found_to_be in needs.items():
        models.add(name, found_to_be)
    return models


def _devices(
    places: Sequence[Place], needs: Sequence[Needs], config: RuntimeConfig
) -> list[Device]:
    """What there is at each place, from what was seen of it when models were weighed."""
    name = f"{OWN}{os.getpid()}-{secrets.token_hex(4)}"
    found = []
    for number, place in enumerate(places):
        there = (each.at[number] for each in needs)
        known = next((each for each in there if each is not None), None)
        if known is None:
            raise ConfigError(f"no model can be on {place.name}", fix="look with kvrt show")
        size = place.on(config).memory_limit
        room = int(known.free * ROOM) if size is None else limit_bytes(size, known.device)
        found.append(Device(place, Share(name=name, size=room), room))
    return found
