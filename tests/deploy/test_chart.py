"""The chart. Its values and templates against each other; and by ``ci/deploy``, which says where
helm is (``HELM``) and a Python that has schemas of Kubernetes (``PYTHON_WITH_KOPF``), what it makes
of many values, held strictly against two versions of Kubernetes."""

import json
import os
import re
import subprocess
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click import Context
from kvrt_cli.main import cli

CHART = Path(__file__).parents[2] / "deploy/helm/kvrt"
HELM = os.environ.get("HELM", "")
PYTHON = os.environ.get("PYTHON_WITH_KOPF", "")
VERSIONS = ("1.31.0", "1.37.0")
Values = dict[str, Any]
Made = list[tuple[Values, Any]]
"""Documents, each with the values that it was made of."""

with_helm = [
    pytest.mark.extra,
    pytest.mark.skipif(not HELM, reason="HELM names none: see ci/deploy"),
]

OPEN: Values = {"model": "Qwen/Qwen3-0.6B", "withoutKeys": True}
HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
WHO: list[Values] = [
    {"withoutKeys": True},
    {"keys": {"secret": "kvrt-keys", "secretKey": "file"}},
    {"keys": {"lines": [f"alice user {HASH} in=acme requests=60", "workspace acme share=3"]}},
    {"jwt": {"issuer": "https://id.example.com", "audience": "kvrt", "role": "roles"}},
]
HOW_MANY: list[Values] = [
    {},
    {"replicas": 3, "disruption": {"maxUnavailable": "25%"}},
    {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 8}},
]
WHERE: list[Values] = [
    {},
    {
        "options": {"memory-limit": "50%", "max-requests": 1000000, "otel": True, "lend": False,
                    "lora": ["law=/models/law", "cooking=/models/cooking"], "weight": 1.5},
        "models": {"claim": "models", "path": "/models"},
        "cache": {"claim": "cache"},
        "resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"nvidia.com/gpu": 1}},
        "hubToken": {"secret": "hub"},
        "runtimeClassName": "nvidia",
        "priorityClassName": "serving",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
             "whenUnsatisfiable": "ScheduleAnyway",
             "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "kvrt"}}}
        ],
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"repository": "registry.example.com/kvrt", "digest": "sha256:" + "0" * 64},
        "leaveSeconds": 0,
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "search"},
        "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://otel:4318"}],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "serviceAccount": {"create": False},
    },
    {"serviceMonitor": {"enabled": True, "secret": "metrics-key", "labels": {"release": "p"}}},
]  # fmt: skip
MATRIX = [{"model": "/models/chat", **a, **b, **c} for a, b, c in product(WHO, HOW_MANY, WHERE)]
OURS = {"ServiceMonitor"}
"""Kinds that come with other operators: Kubernetes has no schema of them."""


@cache
def schema() -> Any:
    return json.loads((CHART / "values.schema.json").read_text())


@cache
def defaults() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def rendered(tmp_path: Path, *values: Values, kube: str = VERSIONS[0]) -> Made:
    """What helm makes of each of these values, in files of `tmp_path`, and together."""
    found = []
    for number, each in enumerate(values):
        path = tmp_path / f"{number}.values"
        path.write_text(json.dumps(each))
        command: list[Path | str] = [
            HELM,
            "template",
            "chat",
            CHART,
            "-f",
            path,
            "--kube-version",
            kube,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (each, done.stderr)
        found += [(each, document) for document in yaml.safe_load_all(done.stdout) if document]
    return found


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return rendered(tmp_path_factory.mktemp("matrix"), *MATRIX)


def refused(tmp_path: Path, values: Values) -> str:
    path = tmp_path / "values"
    path.write_text(json.dumps(values))
    command: list[Path | str] = [HELM, "template", "chat", CHART, "--values", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, values
    return done.stderr


def validated(version: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command: list[Path | str] = [
        Path(PYTHON).with_name("kubernetes-validate"),
        "--strict",
        "-k",
        version,
        *paths,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_values_are_what_their_schema_says_and_every_one_is_in_it() -> None:
    """Strictly: each object refuses what it does not name, but those of Kubernetes' own words."""
    jsonschema.Draft7Validator.check_schema(schema())
    validator = jsonschema.Draft7Validator(schema())
    assert [list(error.path) for error in validator.iter_errors(defaults())] == [["model"]]
    validator.validate({**defaults(), **OPEN})
    for wrong in (
        {"replica": 2}, {"image": {"repo": "x"}}, {"keys": {"lines": ["alice user my-password"]}},
        {"options": {"host": "::"}}, {"options": {"--otel": True}}, {"replicas": "two"},
        {"port": 80}, {"cache": {"size": "64 GiB"}}, {"jwt": {"issuer": "id.example.com"}},
    ):  # fmt: skip
        assert not validator.is_valid({**OPEN, **wrong}), wrong
    for name, part in schema()["properties"].items():
        assert name in defaults() or name == "global"
        if part.get("properties"):
            assert part["additionalProperties"] is False, name
            assert part["properties"].keys() == defaults()[name].keys(), name


def test_templates_read_values_that_there_are() -> None:
    for path in (CHART / "templates").iterdir():
        for dotted in re.findall(r"\.Values\.([\w.]+)", path.read_text()):
            value = defaults()
            for part in dotted.split("."):
                assert part in value, f"{path.name} reads {dotted}"
                value = value[part]


class TestByHelm:
    pytestmark = with_helm

    def test_it_has_nothing_that_helm_would_lint(self, tmp_path: Path) -> None:
        path = tmp_path / "values"
        path.write_text(json.dumps(OPEN))
        command: list[Path | str] = [HELM, "lint", CHART, "--strict", "--values", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 chart(s) failed" in done.stdout

    @pytest.mark.parametrize("version", VERSIONS)
    def test_all_that_it_makes_is_valid_strictly(
        self, version: str, matrix: Made, tmp_path: Path
    ) -> None:
        found = matrix if version == VERSIONS[0] else rendered(tmp_path, *MATRIX, kube=version)
        kinds = {document["kind"] for _, document in found}
        assert kinds >= {"Deployment", "Service", "Secret", "PodDisruptionBudget"} | OURS
        assert "HorizontalPodAutoscaler" in kinds
        theirs = tmp_path / "theirs.yaml"
        theirs.write_text(yaml.safe_dump_all(each for _, each in found if each["kind"] not in OURS))
        done = validated(version, theirs)
        assert done.returncode == 0, done.stdout + done.stderr
        count = sum(each["kind"] not in OURS for _, each in found)
        assert done.stdout.count(" passed for ") == count
        assert len(MATRIX) == 36

    def test_a_field_that_there_is_not_would_be_found(self, tmp_path: Path) -> None:
        (pod,) = (d for _, d in rendered(tmp_path, OPEN) if d["kind"] == "Deployment")
        pod["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump(pod))
        assert validated(VERSIONS[0], path).returncode != 0

    def test_the_command_line_takes_what_containers_are_started_with(self, matrix: Made) -> None:
        """Options as they are written, numbers with all their digits."""
        for values, document in matrix:
            if document["kind"] != "Deployment":
                continue
            (container,) = document["spec"]["template"]["spec"]["containers"]
            command, *args = container["args"]
            assert container["command"] == ["kvrt"]
            parsed = parse(command, args)
            options = values.get("options", {})
            assert parsed["max_requests"] == options.get("max-requests", 512)
            assert parsed["host"] == "0.0.0.0"
            assert parsed["without_keys"] == values.get("withoutKeys", False)
            if "keys" in values:
                assert parsed["keys"] == Path("/etc/kvrt/keys/keys")

    def test_pods_are_as_locked_up_as_they_can_be(self, matrix: Made) -> None:
        for _, document in matrix:
            if document["kind"] != "Deployment":
                continue
            pod = document["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
            probes = {each: container[each]["httpGet"]["path"]
                      for each in ("startupProbe", "livenessProbe", "readinessProbe")}  # fmt: skip
            assert probes == {"startupProbe": "/readyz", "livenessProbe": "/livez",
                              "readinessProbe": "/readyz"}  # fmt: skip
            drain = parse("serve", container["args"][1:])["drain_seconds"]
            assert pod["terminationGracePeriodSeconds"] > drain

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({}, "model"),
            ({"model": "m"}, "nobody is asked for a key"),
            ({**OPEN, "keys": {"secret": "k"}}, "contradicts"),
            ({"model": "m", "keys": {"secret": "k", "lines": [f"a user {HASH}"]}}, "two sources"),
            ({"model": "m", "jwt": {"issuer": "https://id"}}, "go together"),
            ({**OPEN, "autoscaling": {"enabled": True, "minReplicas": 9}}, "above"),
            ({"model": "m", "keys": {"secret": "k"}, "serviceMonitor": {"enabled": True}}, "role"),
            ({**OPEN, "replica": 2}, "replica"),
            ({**OPEN, "options": {"without-keys": True}}, "without-keys"),
        ],
    )
    def test_values_that_cannot_be_are_refused_by_name(
        self, values: Values, said: str, tmp_path: Path
    ) -> None:
        assert said in refused(tmp_path, values)


def parse(command: str, args: list[str]) -> dict[str, Any]:
    """As the command line reads them."""
    found = cli.get_command(Context(cli), command)
    assert found is not None
    with found.make_context(command, list(args)) as context:
        return dict(context.params)
