"""The definition of `Model` resources, what of it is read, and what is made of it."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kvrt_operator.claims import Claim, Claims, Device
from kvrt_operator.manifests import GROUP, PLURAL, USER, VERSION
from kvrt_operator.observed import Observed, Put, Report
from kvrt_operator.reconciler import desired
from kvrt_operator.spec import SpecError, parse_size, read_spec

from kvrt.units import parse_bytes as bytes_of

from .test_chart import CHART, parse

OPERATOR = Path(__file__).parents[2] / "deploy/operator"
DEVICE = Device("a", 1)
Model = dict[str, Any]


def definition() -> Any:
    return yaml.safe_load((OPERATOR / "manifests/crd.yaml").read_text())


def schema() -> Any:
    (version,) = definition()["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def strict(part: Any) -> Any:
    """With objects that have no other fields than they name: a real server would drop these."""
    if isinstance(part, dict):
        found = {name: strict(each) for name, each in part.items()}
        if found.get("type") == "object" and "properties" in found and "metadata" not in part:
            found["additionalProperties"] = False
        return found
    return [strict(each) for each in part] if isinstance(part, list) else part


def valid(model: Model) -> bool:
    whole = schema()
    whole = {**strict(whole), "properties": {
        name: part if name == "metadata" else strict(part)
        for name, part in whole["properties"].items()
    }}  # fmt: skip
    return jsonschema.Draft7Validator(whole).is_valid(model)


def made(**spec: Any) -> Model:
    meta = {"name": "chat", "namespace": "ml", "uid": "u", "generation": 3}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Model", "metadata": meta,
            "spec": {"model": "/models/chat", **spec}}  # fmt: skip


def examples() -> list[Model]:
    found = list(yaml.safe_load_all((OPERATOR / "manifests/example.yaml").read_text()))
    for each in found:
        each["metadata"] |= {"namespace": "ml", "uid": each["metadata"]["name"]}
    return found


FULL = made(
    image="kvrt:1", replicas=2, memory={"guarantee": "12GiB", "weight": 2.5, "limit": "24GiB"},
    accelerator={"vendor": "nvidia", "count": 1}, profile="fast", keysSecret="keys",
    autoscaling={"minReplicas": 1, "maxReplicas": 3, "queuedPerReplica": 2, "quietSeconds": 60},
    metricsSecret="metrics", modelsClaim="models", options={"otel": "true", "page-size": "32"},
    resources={"requests": {"cpu": "2"}, "limits": {"memory": "8Gi"}},
)  # fmt: skip


def test_the_definition_is_a_schema_of_resources_and_names_what_the_operator_reads() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    names = definition()["spec"]
    assert (names["group"], names["names"]["plural"]) == (GROUP, PLURAL)
    assert definition()["metadata"]["name"] == f"{PLURAL}.{GROUP}"
    assert names["versions"][0]["name"] == VERSION
    assert names["versions"][0]["subresources"] == {"status": {}}
    assert schema()["properties"]["spec"]["properties"].keys() == FULL["spec"].keys()
    assert all(valid(each) for each in [FULL, made(), *examples()])


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": "two"}, {"replicas": -1}, {"model": ""}, {"memory": {"guarantee": "12 GB"}},
        {"memory": {"guarantee": 12}}, {"memory": {"wait": 1}}, {"accelerator": {"count": 1}},
        {"accelerator": {"vendor": "other"}}, {"autoscaling": {}}, {"scale": 1},
        {"autoscaling": {"maxReplicas": 0}}, {"options": {"otel": True}},
        {"resources": {"limits": {"cpu": 2}}}, {"memory": {"weight": 0}},
    ],
)  # fmt: skip
def test_resources_that_cannot_be_are_refused_by_the_api_server(wrong: Any) -> None:
    assert not valid(made(**wrong))


@pytest.mark.parametrize("name", ["chat--0", "Chat", "-chat", "chat-", "9chat", "c" * 51])
def test_a_name_that_could_be_a_replicas_is_refused(name: str) -> None:
    model = made()
    model["metadata"]["name"] = name
    assert not valid(model)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"memory": {"weight": 2}}, "memory.guarantee, too"),
        ({"memory": {"guarantee": "2GiB", "limit": "1GiB"}}, "above memory.limit"),
        ({"memory": {"guarantee": "2GiB"}, "accelerator": {"vendor": "amd"}}, "cannot be shared"),
        ({"memory": {"guarantee": "2GiB"}, "accelerator": {"vendor": "nvidia", "count": 2}},
         "accelerator.count"),
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "autoscaling.minReplicas"),
        ({"autoscaling": {"maxReplicas": 2}, "keysSecret": "k"}, "metricsSecret"),
        ({"options": {"host": "::"}}, "options.host"),
        ({"options": {"a b": "c"}}, "options.a b"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_named(spec: Any, said: str) -> None:
    assert valid(made(**spec))
    with pytest.raises(SpecError, match=said):
        read_spec(made(**spec), "kvrt:1")


def test_sizes_are_those_of_the_command_line() -> None:
    assert parse_size("1.5GiB", "x") == 3 << 29
    assert parse_size("512MiB", "x") == 512 << 20
    assert parse_size("7", "x") == 7


PLAIN = made(**{name: value for name, value in FULL["spec"].items() if name != "profile"})


@pytest.mark.parametrize("body", [PLAIN, made(), *examples()], ids=range(4))
def test_the_command_line_takes_what_replicas_are_started_with(body: Model) -> None:
    """And the status that is reported of them is one that the definition has."""
    spec = read_spec(body, "kvrt:1")
    claims = Claims({f"ml/{spec.name}/0": Claim(DEVICE, spec.memory.guarantee, spec.uid)}, "1")
    seen = Observed(claims=claims if spec.shares else Claims(), devices={DEVICE: 80 << 30})
    actions = desired(spec, seen)
    deployments = [
        each.manifest for each in actions
        if isinstance(each, Put) and each.manifest["kind"] == "Deployment"
    ]  # fmt: skip
    (report,) = (each.status for each in actions if isinstance(each, Report))
    assert deployments
    assert valid({**body, "status": report})
    for each in deployments:
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        command, *args = container["args"]
        parsed = parse(command, args)
        assert (parsed["keys"] is None) == (not spec.keys)
        assert parsed["without_keys"] == (not spec.keys)
        if spec.shares:
            assert bytes_of(parsed["guarantee"]) == spec.memory.guarantee
            assert parsed["weight"] == spec.memory.weight
        if spec.memory.limit:
            assert bytes_of(parsed["memory_limit"]) == spec.memory.limit
        drain = parsed["drain_seconds"]
        assert pod["terminationGracePeriodSeconds"] > drain
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsUser"] == USER
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}


def test_replicas_of_the_chart_and_of_the_operator_are_alike() -> None:
    """They are written twice, in two languages: what keeps a Pod safe is the same in both."""
    chart = (CHART / "templates/deployment.yaml").read_text()
    (pod,) = (
        each.manifest["spec"]["template"]["spec"]
        for each in desired(read_spec(made(), "kvrt:1"), Observed())
        if isinstance(each, Put) and each.manifest["kind"] == "Deployment"
    )
    for env in pod["containers"][0]["env"]:
        assert f"{{name: {env['name']}, value: {env['value']}}}" in chart
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = pod["containers"][0][probe]["httpGet"]["path"]
        assert f"{probe}:\n            httpGet: {{path: {path}, port: http}}" in chart
    assert f"runAsUser: {USER}" in chart
