"""A model's whole life on an emulated API server: the operator as a process with kopf, and a server
whose queue it scales by. Run by ``ci/deploy``, which says where a Python is that has kopf and kmock
(``PYTHON_WITH_KOPF``)."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Server, started, until

PYTHON = os.environ.get("PYTHON_WITH_KOPF", "")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_KOPF names none: see ci/deploy"),
]

HERE = Path(__file__).parent
OPERATOR = HERE.parents[1] / "deploy/operator"
MODELS = "apis/kvrt.io/v1alpha1/namespaces/ml/models"
DEPLOYMENTS = "apis/apps/v1/namespaces/ml/deployments"
CLAIMS = "api/v1/namespaces/kvrt-operator/configmaps/kvrt-claims"
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
GIB = 1 << 30


class Cluster:
    """The API server as kubectl, kubelets and others see it, and the operator that is to run."""

    def __init__(self, port: int, folder: Path) -> None:
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=60, trust_env=False)
        self._folder = folder
        self._config = folder / "kubeconfig"
        self._config.write_text(
            f"""
apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: here, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: here, user: {{token: none}}}}]
contexts: [{{name: here, context: {{cluster: here, user: here}}}}]
"""
        )

    def get(self, path: str) -> Any:
        """An object; None: there is none."""
        answer = self.http.get(path)
        return None if answer.status_code == 404 else answer.raise_for_status().json()

    def make(self, path: str, name: str, **parts: Any) -> None:
        meta = {"name": name, **parts.pop("metadata", {})}
        self.http.post(path, json={"metadata": meta, **parts}).raise_for_status()

    def change(self, name: str, spec: dict[str, Any]) -> None:
        headers = {"content-type": "application/merge-patch+json"}
        body = {"spec": spec}
        self.http.patch(f"{MODELS}/{name}", json=body, headers=headers).raise_for_status()

    def names(self, path: str = DEPLOYMENTS) -> list[str]:
        answer = self.http.get(path)
        if answer.status_code == 404:  # there was never one
            return []
        return sorted(each["metadata"]["name"] for each in answer.json()["items"])

    def status(self, name: str) -> Any:
        return self.get(f"{MODELS}/{name}").get("status", {})

    def condition(self, name: str, kind: str) -> tuple[str, str]:
        found = {each["type"]: each for each in self.status(name).get("conditions", [])}
        return found[kind]["status"], found[kind]["message"]

    def claims(self) -> dict[str, str]:
        found = self.get(CLAIMS)
        return {} if found is None else found["data"]

    @contextmanager
    def operator(self, port: int) -> Iterator[subprocess.Popen[bytes]]:
        """Killed in the end, if it runs still.

        Args:
            port: of servers.
        """
        command = [PYTHON, "-m", "kvrt_operator", "--image", "kvrt:test", "--seconds", "0.5",
                   "--port", str(port), "--liveness", ""]  # fmt: skip
        env = {**os.environ, "KUBECONFIG": str(self._config), "PYTHONPATH": str(OPERATOR)}
        with (self._folder / "operator.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    command = [PYTHON, HERE / "emulated_api.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = Cluster(int(process.stdout.readline()), tmp_path)
            for node in ("a", "b"):
                labels = {"kvrt.io/share": "cpu", "kvrt.io/share-size": "8GiB"}
                found.make("api/v1/nodes", node, metadata={"labels": labels}, status=READY)
            with closing(found.http):
                yield found
        finally:
            process.kill()


@contextmanager
def asked(server: Server, count: int) -> Iterator[None]:
    """So many long requests of a server at once; they are left in the end."""
    body = {"model": "tiny", "prompt": "def f", "max_tokens": 900, "stream": True,
            "ignore_eos": True}  # fmt: skip
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=120) as http:
            while not done.is_set():
                with http.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
                    for _ in answer.iter_lines():
                        if done.is_set():
                            return

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(120)


def test_a_model_is_served_scaled_by_its_queue_changed_and_removed(
    cluster: Cluster, tmp_path: Path
) -> None:
    with started(tmp_path, "--max-running", "1") as server, cluster.operator(server.port) as first:
        spec = {
            "model": "tiny",
            "memory": {"guarantee": "4GiB"},
            "autoscaling": {"maxReplicas": 2, "queuedPerReplica": 2, "quietSeconds": 2},
        }
        cluster.make(MODELS, "chat", apiVersion="kvrt.io/v1alpha1", kind="Model", spec=spec)
        until(lambda: cluster.names() == ["chat--0"], 60)
        until(lambda: "conditions" in cluster.status("chat"), 60)
        uid = cluster.get(f"{MODELS}/chat")["metadata"]["uid"]
        for path in (DEPLOYMENTS, "api/v1/namespaces/ml/services",
                     "apis/policy/v1/namespaces/ml/poddisruptionbudgets"):  # fmt: skip
            (name,) = cluster.names(path)
            (owner,) = cluster.get(f"{path}/{name}")["metadata"]["ownerReferences"]
            assert owner["uid"] == uid
        assert list(cluster.claims()) == ["ml_chat_0"]
        assert cluster.condition("chat", "Placed")[0] == "True"
        assert cluster.condition("chat", "Ready") == ("False", "0 of 1 replicas are ready")

        pod = {"metadata": {"labels": {"kvrt.io/model": "chat"}},
               "status": {**READY, "podIP": "127.0.0.1"}}  # fmt: skip
        cluster.make("api/v1/namespaces/ml/pods", "chat-0", **pod)
        until(lambda: cluster.condition("chat", "Ready")[0] == "True", 60)
        with asked(server, 5):  # of which one runs, and four wait
            until(lambda: cluster.names() == ["chat--0", "chat--1"], 60)
            cluster.make("api/v1/namespaces/ml/pods", "chat-1", **pod)
            until(lambda: cluster.status("chat")["readyReplicas"] == 2, 60)
        nodes = {claim.split('"')[1] for claim in cluster.claims().values()}
        assert nodes == {"a", "b"}
        until(lambda: cluster.names() == ["chat--0"], 90)
        until(lambda: list(cluster.claims()) == ["ml_chat_0"], 60)

        first.kill()
        first.wait(60)
        cluster.change("chat", {"memory": {"guarantee": "6GiB"}})
        with cluster.operator(server.port):

            def told() -> list[str]:
                found = cluster.get(f"{DEPLOYMENTS}/chat--0")
                pod = {} if found is None else found["spec"]["template"]["spec"]
                return pod["containers"][0]["args"] if pod else []

            until(lambda: f"--guarantee={6 * GIB}" in told(), 60)
            until(lambda: cluster.status("chat").get("observedGeneration") == 2, 60)
            cluster.http.delete(f"{MODELS}/chat").raise_for_status()
            until(lambda: cluster.get(f"{MODELS}/chat") is None, 90)
            assert cluster.names() == []
            assert cluster.names("api/v1/namespaces/ml/services") == []
            assert cluster.claims() == {}


def test_one_that_has_no_place_or_cannot_be_is_told_why(cluster: Cluster) -> None:
    with cluster.operator(8000):
        cluster.make(MODELS, "large", apiVersion="kvrt.io/v1alpha1", kind="Model",
                     spec={"model": "tiny", "memory": {"guarantee": "9GiB"}})  # fmt: skip
        cluster.make(MODELS, "wrong", apiVersion="kvrt.io/v1alpha1", kind="Model",
                     spec={"model": "tiny", "memory": {"weight": 2}})  # fmt: skip
        until(lambda: "conditions" in cluster.status("large"), 60)
        until(lambda: "conditions" in cluster.status("wrong"), 60)
        assert cluster.condition("large", "Placed")[0] == "False"
        assert "needs 9 GiB" in cluster.condition("large", "Placed")[1]
        assert cluster.condition("wrong", "Accepted")[0] == "False"
        assert "memory.guarantee" in cluster.condition("wrong", "Accepted")[1]
        assert cluster.names() == []
        cluster.change("large", {"memory": {"guarantee": "8GiB"}})
        until(lambda: cluster.names() == ["large--0"], 60)
        cluster.http.delete(f"{MODELS}/large").raise_for_status()
        until(lambda: cluster.get(f"{MODELS}/large") is None, 90)
        assert cluster.claims() == {}
