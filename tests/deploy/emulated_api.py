"""An API server in memory: kmock's, with what the operator needs of a real one and it lacks: uids,
versions and conflicts, whole replacements, and the collection of what has lost its owner. Run as a
program by a Python that has kmock; it prints its port.

It checks no schemas and no rights.
"""

import asyncio
import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from aiohttp import web
from kmock import KubernetesEmulator, KubernetesError, ResourceInfo, Server, method

RESOURCES = {
    "kvrt.io/v1alpha1/models": "Model",
    "apps/v1/deployments": "Deployment",
    "policy/v1/poddisruptionbudgets": "PodDisruptionBudget",
    "v1/services": "Service",
    "v1/configmaps": "ConfigMap",
    "v1/secrets": "Secret",
    "v1/pods": "Pod",
    "v1/nodes": "Node",
    "v1/namespaces": "Namespace",  # which kopf waits for
    "apiextensions.k8s.io/v1/customresourcedefinitions": "CustomResourceDefinition",
}
CLUSTERS = {"Node", "Namespace", "CustomResourceDefinition"}
"""Kinds that are in no namespace."""


class Conflict(KubernetesError):
    """What is to be changed is another by now."""

    status = 409
    reason = "Conflict"
    message = "the object has been modified"
    details = None


class ApiServer(KubernetesEmulator):
    """The server; objects are told apart by resource, namespace and name."""

    versions = itertools.count(1)

    async def _handle(self, request: Any) -> Any:
        if request.resource is not None and isinstance(request.data, dict):
            meta = request.data.setdefault("metadata", {})
            key = (request.resource, request.namespace, request.name)
            there = self._objects[key].raw if self._is(key) else None
            if request.method == method.POST and request.name is None:
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                meta |= {"uid": str(uuid4()), "generation": 1, "creationTimestamp": now}
                if request.namespace:
                    meta["namespace"] = request.namespace
                meta["resourceVersion"] = str(next(self.versions))
            elif request.method in (method.PUT, method.PATCH) and there is not None:
                self._change(request, there)
                if request.method == method.PUT:  # which kmock has not
                    return await self._replaced(key, request.data)
        answer = await super()._handle(request)
        await self._collect()
        return answer

    def _is(self, key: Any) -> bool:
        return key in self._objects and not self._objects[key].deleted

    def _change(self, request: Any, there: Any) -> None:
        """Make of a change one of what is there, if it is of its version."""
        data, meta = request.data, request.data["metadata"]
        if meta.get("resourceVersion") not in (None, there["metadata"]["resourceVersion"]):
            raise Conflict
        if request.subresource == "status":
            for name in data.keys() - {"status", "metadata"}:
                del data[name]
        if "spec" in data:
            meta["generation"] = there["metadata"]["generation"] + 1
        meta["resourceVersion"] = str(next(self.versions))

    async def _replaced(self, key: Any, data: Any) -> web.Response:
        """All of an object's data; the operator replaces nothing else."""
        gone = self._objects[key].raw.get("data", {}).keys() - data["data"].keys()
        data["data"] |= dict.fromkeys(gone)
        self._objects[key].patch(data)
        return web.json_response(self._objects[key].raw)

    async def _collect(self) -> None:
        """What has an owner that is gone goes."""
        living = {
            each.raw["metadata"].get("uid") for each in self._objects.values() if not each.deleted
        }
        for each in self._objects.values():
            if each.deleted:
                continue
            owners = each.raw["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in living for owner in owners):
                each.delete()


async def main() -> None:
    async with ApiServer() as emulated, Server(emulated) as server:
        for name, kind in RESOURCES.items():
            emulated.resources[name] = ResourceInfo(
                kind=kind,
                namespaced=kind not in CLUSTERS,
                verbs={"get", "list", "watch", "create", "patch", "update", "delete"},
            )
        print(server.url.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
