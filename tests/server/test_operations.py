"""The dashboard and the alert rules name metrics and labels that the server has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from .conftest import MESSAGES, Serve, Server, until

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = FOLDER / "grafana.json"
ENDINGS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
OUTSIDE = {"instance", "job", "le"}
"""Labels that a scrape or a histogram adds."""

SELECTOR = re.compile(r"(\bkvrt_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    for rule in alerts():
        yield rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]


@pytest.fixture
def labels(serve: Serve, tmp_path: Path) -> dict[str, set[str]]:
    """Of each sample that a server has, the labels: one with every part that has metrics."""
    server = serve("--audit", str(tmp_path / "audit"), "--offload", "host:16MiB",
                   "--response-cache", "1MiB")  # fmt: skip
    return labels_of(server)


def labels_of(server: Server) -> dict[str, set[str]]:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3}
    assert server.post("/v1/chat/completions", body)[0] == 200
    until(lambda: server.metrics().get("kvrt_requests_total,outcome=length") == 1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.ask("GET", "/metrics")[2].decode()):
        for ending in ENDINGS[family.type]:
            found[family.name + ending] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_and_label_that_they_name_is_one_of_the_servers(
    labels: dict[str, set[str]],
) -> None:
    named = set()
    for expression in expressions():
        used: set[str] = set()
        for name, matchers in SELECTOR.findall(expression):
            assert name in labels, f"{expression}: the server has no {name}"
            used |= labels[name]
            named.add(name)
            wrong = {key for key, _ in MATCHER.findall(matchers)} - labels[name] - OUTSIDE
            assert not wrong, f"{expression}: {name} has no label {wrong}"
        for group in GROUPED.findall(expression):
            wrong = {key.strip() for key in group.split(",")} - used - OUTSIDE
            assert not wrong, f"{expression}: there is no label {wrong}"
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in labels}
    bare -= {name for name in bare if name.endswith("_created")}
    seen = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert bare - seen == set(), "and none of the server's is shown nowhere"


def test_they_are_well_formed() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 5
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids) > 10
    for expression in expressions():
        assert expression.count("(") == expression.count(")"), expression
        assert expression.count("{") == expression.count("}"), expression


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong_with_any_expression(tmp_path: Path) -> None:
    shown = [
        {"record": f"shown:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "shown", "rules": shown}]}))
    for path in (ALERTS, rules):
        command = ["promtool", "check", "rules", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr
