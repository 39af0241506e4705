"""The objects that a model is made of."""

import json
from typing import Any

from kvrt_operator.claims import Claim
from kvrt_operator.observed import Manifest
from kvrt_operator.spec import RESOURCES, Spec

GROUP, VERSION, PLURAL = "kvrt.io", "v1alpha1", "models"
MODEL, REPLICA = f"{GROUP}/model", f"{GROUP}/replica"
"""Labels."""

APPLIED = f"{GROUP}/applied"
"""An annotation: what we have asked for of an object, so that what we ask for no more can go."""

MEMORY_LABEL = {"nvidia": "nvidia.com/gpu.memory", "amd": "amd.com/gpu.vram"}
"""Of nodes: MiB of a device, as the vendors' feature discovery has them (AMD's has a unit: it
cannot be compared)."""

PORT = 8000
USER = 10001
DRAIN_S, LEAVE_S = 30, 5
SHARES = "/var/lib/kvrt/shares"
"""Of a node: where containers that share a device meet. It belongs to `USER`."""


def replica_name(spec: Spec, number: int) -> str:
    """Of a Deployment. No model is called so: names have no two dashes in a row."""
    return f"{spec.name}--{number}"


def owned(spec: Spec, kind: str, api: str, name: str, body: Manifest) -> Manifest:
    """An object of the model, which goes when the model does."""
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Model",
        "name": spec.name,
        "uid": spec.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    meta = {
        "name": name,
        "namespace": spec.namespace,
        "labels": {MODEL: spec.name, "app.kubernetes.io/managed-by": "kvrt-operator"},
        "annotations": {APPLIED: json.dumps(body, sort_keys=True)},
        "ownerReferences": [owner],
    }
    return {"apiVersion": api, "kind": kind, "metadata": meta, "spec": body}


def service(spec: Spec) -> Manifest:
    """Where all replicas are found."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}]
    return owned(spec, "Service", "v1", spec.name, {"selector": {MODEL: spec.name}, "ports": ports})


def budget(spec: Spec) -> Manifest:
    """One at a time may be taken away by whoever empties nodes."""
    body = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {MODEL: spec.name}},
    }
    return owned(spec, "PodDisruptionBudget", "policy/v1", spec.name, body)


def deployment(spec: Spec, replicas: int) -> Manifest:
    """Replicas with devices of their own, or with none: Kubernetes finds them nodes."""
    pod = _pod(spec, _args(spec))
    container = pod["containers"][0]
    strategy: Manifest = {"type": "RollingUpdate"}
    if spec.vendor:
        limits = container["resources"].setdefault("limits", {})
        limits[RESOURCES[spec.vendor]] = spec.devices
        # A device for a new Pod may be there only once an old one has given back its own.
        strategy["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}
    if spec.vendor == "nvidia" and spec.memory.limit:
        least = (spec.memory.limit // spec.devices) >> 20
        pod["affinity"] = _on(
            {"matchExpressions": [
                {"key": MEMORY_LABEL[spec.vendor], "operator": "Gt", "values": [str(least)]}
            ]}
        )  # fmt: skip
    return _deployed(spec, spec.name, {MODEL: spec.name}, replicas, strategy, pod)


def shared_deployment(spec: Spec, number: int, claim: Claim, size: int) -> Manifest:
    """A replica on its part of a device.

    Args:
        size: bytes of the device, which all that share it have to agree on.
    """
    memory = spec.memory
    args = [
        f"--share=kvrt-{claim.device.index}:{size}",
        f"--guarantee={claim.nbytes}",
        "--lend",
        f"--weight={memory.weight:g}",
    ]
    pod = _pod(spec, [*_args(spec), *args])
    container = pod["containers"][0]
    container["env"].append({"name": "KVRT_SHARE_DIR", "value": SHARES})
    if spec.vendor == "nvidia":
        pod["runtimeClassName"] = "nvidia"
        index = str(claim.device.index)
        container["env"].append({"name": "NVIDIA_VISIBLE_DEVICES", "value": index})
    container["volumeMounts"].append({"name": "shares", "mountPath": SHARES})
    pod["volumes"].append({"name": "shares", "hostPath": {"path": SHARES, "type": "Directory"}})
    field = {"key": "metadata.name", "operator": "In", "values": [claim.device.node]}
    pod["affinity"] = _on({"matchFields": [field]})
    labels = {MODEL: spec.name, REPLICA: str(number)}
    # Two of the same replica would need its part of the device twice.
    return _deployed(spec, replica_name(spec, number), labels, 1, {"type": "Recreate"}, pod)


def _on(term: Manifest) -> Manifest:
    """An affinity to nodes."""
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _deployed(
    spec: Spec, name: str, labels: dict[str, str], replicas: int, strategy: Manifest, pod: Manifest
) -> Manifest:
    body = {
        "replicas": replicas,
        "strategy": strategy,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return owned(spec, "Deployment", "apps/v1", name, body)


def _args(spec: Spec) -> list[str]:
    args = ["serve", spec.model, "--host=0.0.0.0", f"--port={PORT}", f"--drain-seconds={DRAIN_S}"]
    args.append("--keys=/etc/kvrt/keys/keys" if spec.keys else "--without-keys")
    if spec.profile:
        args.append("--profile=/etc/kvrt/profile/profile.yaml")
    if spec.memory.limit:
        args.append(f"--memory-limit={spec.memory.limit}")
    for name, value in sorted(spec.options.items()):
        args.append(f"--{name}" if value == "true" else f"--{name}={value}")
    return args


def _pod(spec: Spec, args: list[str]) -> Any:
    volumes: list[Manifest] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    mounts: list[Manifest] = [
        {"name": "cache", "mountPath": "/cache"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for name, path, source in (
        ("keys", "/etc/kvrt/keys", spec.keys and {"secret": {"secretName": spec.keys}}),
        ("profile", "/etc/kvrt/profile", spec.profile and {"configMap": {"name": spec.profile}}),
        ("models", "/models", spec.claim and
         {"persistentVolumeClaim": {"claimName": spec.claim, "readOnly": True}}),
    ):  # fmt: skip
        if source:
            volumes.append({"name": name, **source})
            mounts.append({"name": name, "mountPath": path, "readOnly": True})
    container: Manifest = {
        "name": "kvrt",
        "image": spec.image,
        "command": ["kvrt"],
        "args": args,
        "env": [
            {"name": "HOME", "value": "/cache"},
            {"name": "XDG_CACHE_HOME", "value": "/cache"},
            {"name": "HF_HOME", "value": "/cache/huggingface"},
            {"name": "TRITON_CACHE_DIR", "value": "/cache/triton"},
            {"name": "KVRT_LOG_FORMAT", "value": "json"},
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # Half an hour to load a model.
        "startupProbe": _probe("/readyz", periodSeconds=5, failureThreshold=360),
        "livenessProbe": _probe("/livez", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        "readinessProbe": _probe("/readyz", periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        # Until nobody sends it requests any more.
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_S}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {name: dict(value) for name, value in spec.resources.items()},
        "volumeMounts": mounts,
    }
    return {
        "automountServiceAccountToken": False,
        # A Service called kvrt-serve would set KVRT_SERVE_PORT, which is an option's name.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": LEAVE_S + DRAIN_S + 15,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _probe(path: str, **how: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **how}


def change(there: Manifest, wanted: Manifest) -> Manifest:
    """A JSON merge patch (RFC 7386) that makes of an object what is wanted: with fields of
    `wanted`, and without those that were asked for before and are no more. What others have added
    stays.

    Args:
        there: as it is in the cluster.
    """
    before = there.get("metadata", {}).get("annotations", {}).get(APPLIED, "{}")
    return {**wanted, "spec": _changed(json.loads(before), wanted["spec"])}


def _changed(before: Any, wanted: Any) -> Any:
    if not isinstance(wanted, dict) or not isinstance(before, dict):
        return wanted
    gone = {name: None for name in before if name not in wanted}
    return {**gone, **{name: _changed(before.get(name), value) for name, value in wanted.items()}}
