"""What KServe asks of a server: the Open Inference Protocol's routes of health, and OpenAI's under
its own prefix."""

import json
from pathlib import Path

import yaml

from tests.deploy.test_chart import parse

from .conftest import Server

RUNTIME = Path(__file__).parents[2] / "deploy/kserve/runtime.yaml"


def test_health_and_models_are_told_as_the_open_inference_protocol_has_it(server: Server) -> None:
    for path, field in (
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
        ("/v2/models/tiny/ready", "ready"),
    ):
        status, _, answer = server.ask("GET", path)
        assert status == 200
        assert json.loads(answer)[field] is True
    assert server.ask("GET", "/v2/models/other/ready")[0] == 404


def test_openais_clients_find_everything_under_kserves_prefix(server: Server) -> None:
    said = []
    for base in ("/v1", "/openai/v1"):
        client = server.client(base_url=f"{server.url}{base}")
        assert client.models.list().data[0].id == "tiny"
        answer = client.completions.create(
            model="tiny", prompt="def f", max_tokens=4, temperature=0
        )
        said.append(answer.choices[0].text)
    assert said[0] == said[1]
    for path in ("/openai/livez", "/openai/metrics", "/openai/openai/v1/models", "/openai/v1"):
        assert server.ask("GET", path)[0] == 404


def test_the_command_line_takes_what_the_runtime_starts_it_with() -> None:
    runtime, _ = yaml.safe_load_all(RUNTIME.read_text())
    (container,) = runtime["spec"]["containers"]
    parsed = parse(container["args"][0], container["args"][1:])
    assert parsed["alias"] == ("{{.Name}}",)
    assert parsed["port"] == container["ports"][0]["containerPort"]
