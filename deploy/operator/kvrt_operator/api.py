"""HTTP: the API server, and the metrics of servers."""

import base64
import re
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
import kopf

from kvrt_operator.claims import Claims, Device
from kvrt_operator.manifests import GROUP, MEMORY_LABEL, MODEL, PLURAL, VERSION, change
from kvrt_operator.observed import Action, Delete, Hold, Key, Manifest, Put, Report
from kvrt_operator.spec import Spec, SpecError, parse_size

PATHS = {
    "Deployment": "apis/apps/v1/namespaces/{}/deployments",
    "Service": "api/v1/namespaces/{}/services",
    "PodDisruptionBudget": "apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Model": f"apis/{GROUP}/{VERSION}/namespaces/{{}}/{PLURAL}",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Secret": "api/v1/namespaces/{}/secrets",
    "Pod": "api/v1/namespaces/{}/pods",
}
CHILDREN = ("Deployment", "Service", "PodDisruptionBudget")
CLAIMS = "kvrt-claims"
"""The ConfigMap."""

SHARE, SHARE_SIZE = f"{GROUP}/share", f"{GROUP}/share-size"
"""Labels of nodes: that their devices may be shared, by vendor or ``cpu``; and how much of each,
where that is not nine tenths of a GPU."""

WAITING = re.compile(r'^kvrt_sequences\{state="waiting"\} ([0-9.e+]+)$', re.MULTILINE)
TIMEOUT = aiohttp.ClientTimeout(total=10)


class Conflict(Exception):
    """What was seen is no more so: the pass ends, and the next one looks again."""


class Api:
    """What the operator asks of the cluster. Closed in the end.

    Args:
        info: address and credentials.
        namespace: the operator's own, where claims are.
    """

    def __init__(self, info: kopf.ConnectionInfo, namespace: str) -> None:
        self._server = info.server.rstrip("/")
        self._namespace = namespace
        self._token = info.token
        context = None
        if self._server.startswith("https:"):
            context = ssl.create_default_context(cafile=info.ca_path)
            if info.certificate_path:
                context.load_cert_chain(info.certificate_path, info.private_key_path)
        connector = aiohttp.TCPConnector(ssl=context or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)

    async def close(self) -> None:
        await self._session.close()

    # --- looking -----------------------------------------------------------------------------

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object; None: there is none."""
        return await self._asked("GET", f"{PATHS[kind].format(namespace)}/{name}")

    async def children(self, spec: Spec) -> dict[Key, Manifest]:
        """What the model owns."""
        found: dict[Key, Manifest] = {}
        for kind in CHILDREN:
            for each in await self._listed(PATHS[kind].format(spec.namespace), spec):
                if _owner(each) == spec.uid:
                    found[kind, each["metadata"]["name"]] = {**each, "kind": kind}
        return found

    async def claims(self) -> Claims:
        """Of all models."""
        found = await self.get("ConfigMap", self._namespace, CLAIMS)
        if found is None:
            return Claims()
        return Claims.read(found.get("data") or {}, found["metadata"]["resourceVersion"])

    async def devices(self, vendor: str) -> tuple[dict[Device, int], frozenset[str]]:
        """Bytes of devices that may be shared, and nodes that take nothing new.

        Args:
            vendor: empty: the nodes' processors, each node's as one device.
        """
        found: dict[Device, int] = {}
        closed = set()
        nodes = await self._asked("GET", "api/v1/nodes") or {}
        for node in nodes.get("items", []):
            name, labels = node["metadata"]["name"], node["metadata"].get("labels", {})
            if labels.get(SHARE) != (vendor or "cpu"):
                continue
            size, count = _size(labels, vendor)
            found |= {Device(name, index): size for index in range(count)}
            if node.get("spec", {}).get("unschedulable") or not _is_ready(node):
                closed.add(name)
        return found, frozenset(closed)

    async def queued(self, spec: Spec, port: int) -> tuple[dict[str, int], int]:
        """Requests that wait in each replica that says so, by Pod; and how many are ready."""
        pods = await self._listed(PATHS["Pod"].format(spec.namespace), spec)
        ready = [pod for pod in pods if _is_ready(pod) and pod["status"].get("podIP")]
        if spec.scaling is None:
            return {}, len(ready)
        headers = {}
        if spec.metrics:
            secret = await self.get("Secret", spec.namespace, spec.metrics)
            if secret is not None:
                headers["Authorization"] = f"Bearer {_decoded(secret, 'key')}"
        found = {}
        for pod in ready:
            address = pod["status"]["podIP"]
            host = f"[{address}]" if ":" in address else address
            try:
                url = f"http://{host}:{port}/metrics"
                async with self._session.get(url, headers=headers) as response:
                    match = WAITING.search(await response.text())
            except (aiohttp.ClientError, TimeoutError):
                continue
            if match:
                found[pod["metadata"]["name"]] = int(float(match[1]))
        return found, len(ready)

    # --- acting ------------------------------------------------------------------------------

    async def do(self, spec: Spec, action: Action) -> None:
        """One action.

        Raises:
            Conflict: what it is about has changed, or belongs to somebody else.
            aiohttp.ClientError: the API server refuses it, or is not there.
        """
        match action:
            case Put(manifest):
                await self._put(spec, manifest)
            case Delete((kind, name)):
                await self._delete(spec, kind, name)
            case Hold(claims):
                await self._hold(claims)
            case Report(status):
                path = f"{PATHS['Model'].format(spec.namespace)}/{spec.name}/status"
                await self._asked("PATCH", path, {"status": status})

    async def _put(self, spec: Spec, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path = PATHS[kind].format(spec.namespace)
        there = await self.get(kind, spec.namespace, name)
        if there is None:
            await self._asked("POST", path, manifest)
            return
        if _owner(there) != spec.uid:
            raise Conflict(f"there is a {kind} {name} already, and it is not this model's")
        patch = change(there, manifest)
        patch["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
        await self._asked("PATCH", f"{path}/{name}", patch)

    async def _delete(self, spec: Spec, kind: str, name: str) -> None:
        there = await self.get(kind, spec.namespace, name)
        if there is None or _owner(there) != spec.uid:
            return
        body = {"preconditions": {"uid": there["metadata"]["uid"]},
                "propagationPolicy": "Background"}  # fmt: skip
        await self._asked("DELETE", f"{PATHS[kind].format(spec.namespace)}/{name}", body)

    async def _hold(self, claims: Claims) -> None:
        meta = {"name": CLAIMS, "namespace": self._namespace}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": claims.data()}
        path = PATHS["ConfigMap"].format(self._namespace)
        if not claims.version:
            await self._asked("POST", path, body)
            return
        meta["resourceVersion"] = claims.version
        await self._asked("PUT", f"{path}/{CLAIMS}", body)

    async def _listed(self, path: str, spec: Spec) -> list[Manifest]:
        found = await self._asked("GET", f"{path}?labelSelector={MODEL}%3D{spec.name}") or {}
        items: list[Manifest] = found.get("items", [])
        return [each for each in items if each["metadata"]["labels"].get(MODEL) == spec.name]

    async def _asked(self, method: str, path: str, body: Any = None) -> Manifest | None:
        """The answer; None: there is no such thing."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Content-Type": kind}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        url = f"{self._server}/{path}"
        async with self._session.request(method, url, json=body, headers=headers) as response:
            if response.status == 404:
                return None
            if response.status == 409:
                raise Conflict((await response.text())[:200])
            response.raise_for_status()
            found: Manifest = await response.json()
            return found


def _owner(manifest: Manifest) -> str:
    owners = manifest["metadata"].get("ownerReferences", [])
    return next((str(each["uid"]) for each in owners if each.get("controller")), "")


def _is_ready(thing: Manifest) -> bool:
    """A Pod, or a node."""
    if "deletionTimestamp" in thing["metadata"]:
        return False
    conditions = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _size(labels: Mapping[str, str], vendor: str) -> tuple[int, int]:
    """Bytes of each device of a node that may be shared, and how many it has. What a step computes
    in, and what drivers keep for each process, is in the tenth that is left out of a GPU's."""
    own = labels.get(SHARE_SIZE)
    try:
        mib = int(labels.get(MEMORY_LABEL.get(vendor, ""), "0"))
        count = int(labels.get("nvidia.com/gpu.count", "1")) if vendor else 1
        size = parse_size(own, SHARE_SIZE) if own else (mib << 20) * 9 // 10
    except (SpecError, ValueError):
        return 0, 0
    return size, count if size else 0


def _decoded(secret: Manifest, key: str) -> str:
    return base64.b64decode(secret.get("data", {}).get(key, "")).decode().strip()
