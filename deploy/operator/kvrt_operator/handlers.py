"""kopf: when to look, and that a model that is removed stays until its claims are given back.

A pass is level-triggered: it looks at what is there now, whatever has happened. So one that fails,
or an operator that is killed, costs nothing but time.
"""

import asyncio
import time
from collections import defaultdict
from typing import Any

import aiohttp
import kopf

from kvrt_operator.api import Api, Conflict
from kvrt_operator.manifests import GROUP, PLURAL, VERSION
from kvrt_operator.observed import Observed
from kvrt_operator.reconciler import desired, rejected
from kvrt_operator.settings import Settings
from kvrt_operator.spec import Spec, SpecError, read_spec

RETRY_S = 1.0


class Operator:
    """Passes over models.

    Args:
        settings: of the operator.
        api: of the cluster.
    """

    def __init__(self, settings: Settings, api: Api) -> None:
        self._settings = settings
        self._api = api
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def reconcile(self, namespace: str, name: str, uid: str, log: Any) -> bool:
        """Looks and acts, one pass of a model at a time; whether nothing is left to do."""
        async with self._locks[uid]:
            body = await self._api.get("Model", namespace, name)
            if body is None or body["metadata"]["uid"] != uid:
                return True
            try:
                return await self._pass(body, log)
            except Conflict as conflict:
                log.info("the pass ended early: %s", conflict)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("the pass failed: %s", error)
            return False

    async def _pass(self, body: Any, log: Any) -> bool:
        status = body.get("status", {})
        try:
            spec = read_spec(body, self._settings.image)
        except SpecError as error:
            meta = body["metadata"]
            seen = Observed(status=status, now=time.time())
            spec = Spec(meta["name"], meta["namespace"], meta["uid"], 0, "", "")
            actions = rejected(meta.get("generation", 0), str(error), seen)
            if "deletionTimestamp" in meta:
                actions = []
        else:
            actions = desired(spec, await self._seen(spec, status))
        for action in actions:
            log.info("%s", type(action).__name__)
            await self._api.do(spec, action)
        return not actions

    async def _seen(self, spec: Spec, status: Any) -> Observed:
        devices, closed = await self._api.devices(spec.vendor)
        queued, ready = await self._api.queued(spec, self._settings.port)
        return Observed(
            children=await self._api.children(spec),
            claims=await self._api.claims(),
            devices=devices,
            closed=closed,
            status={name: value for name, value in status.items() if name != "kopf"},
            queued=queued,
            ready=ready,
            now=time.time(),
        )


def register(own: Settings, info: kopf.ConnectionInfo) -> kopf.OperatorRegistry:
    """The handlers, for `kopf.operator`. Called in its event loop."""
    registry = kopf.OperatorRegistry()
    api = Api(info, own.namespace)
    operator = Operator(own, api)

    @kopf.on.startup(registry=registry)
    def begin(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.finalizer = f"{GROUP}/claims"
        settings.posting.enabled = False

    @kopf.on.cleanup(registry=registry)
    async def end(**_: Any) -> None:
        await api.close()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return info

    @kopf.timer(GROUP, VERSION, PLURAL, interval=own.seconds, registry=registry)
    async def look(namespace: str, name: str, uid: str, logger: Any, **_: Any) -> None:
        await operator.reconcile(namespace, name, uid, logger)

    @kopf.on.update(GROUP, VERSION, PLURAL, field="spec", registry=registry)
    async def changed(namespace: str, name: str, uid: str, logger: Any, **_: Any) -> None:
        await operator.reconcile(namespace, name, uid, logger)

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=registry)
    async def removed(namespace: str, name: str, uid: str, logger: Any, **_: Any) -> None:
        if not await operator.reconcile(namespace, name, uid, logger):
            raise kopf.TemporaryError("not all is given back yet", delay=RETRY_S)

    return registry
