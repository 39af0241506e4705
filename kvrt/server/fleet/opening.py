"""All models of a server are weighed, and none is loaded."""

import asyncio
import os
import secrets
from collections.abc import Mapping

from kvrt.config import RuntimeConfig
from kvrt.engine.sizing import limit_bytes
from kvrt.engine.weighing import Weighed
from kvrt.errors import ConfigError
from kvrt.server.desk import Desk
from kvrt.server.fleet.models import Models
from kvrt.server.fleet.naming import Folder
from kvrt.server.fleet.states import Fleet
from kvrt.server.fleet.weighing import weighed, weighed_or_none
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
        KvrtError: one that was named is not there, or damaged; or there is none.
    """
    found = {**configs, **({} if folder is None else folder.models()), **configs}
    if not found:
        raise ConfigError("there is no model to serve", fix="name one, or a folder of some")
    first = next(iter(configs.values()), None) or next(iter(found.values()))
    needs: dict[str, Weighed | None] = {}
    for name, each in found.items():
        needs[name] = await weighed(each) if name in configs else await weighed_or_none(each)
    known = next((each for each in needs.values() if each is not None), None)
    if known is None:
        raise ConfigError("no model of the folder can be loaded", fix="look with kvrt show")
    device = known.device
    size = first.memory_limit
    total = int(known.free * ROOM) if size is None else limit_bytes(size, device)
    await asyncio.to_thread(sweep, OWN)  # what servers have left that were killed
    share = Share(name=f"{OWN}{os.getpid()}-{secrets.token_hex(4)}", size=total)
    models = Models(
        Fleet(
            [total],
            policy=LeastWorth(desk.config.objective),
            most_waiting=desk.config.max_waiting,
        ),
        found,
        folder,
        desk,
        template,
        share,
    )
    for name, found_to_be in needs.items():
        models.add(name, found_to_be)
    return models
