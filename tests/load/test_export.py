"""`kvrt bench export`: results in the real MLflow, Weights & Biases and OpenTelemetry."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from kvrt.bench.exporting.flat import figures, settings
from kvrt.bench.figures import summary
from kvrt.bench.statistics import FIGURES, Figure, value
from kvrt.bench.words import Run, load, save
from tests.cli.conftest import Kvrt

from .runs import record, run


def made(count: int = 5) -> Run:
    whole = run(1, count=count, per_hour=3.0)
    failed = record(count, 0.1, 0.01, error="it broke off")
    target = {"kind": "http", "model": "m", "endpoint": "completions"}
    return replace(whole, records=[*whole.records, failed], target=target)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    save(made(), path, summary(made()))
    return path


def test_figures_have_the_names_and_values_of_the_gate() -> None:
    found = figures(made())
    for name in (*FIGURES, "cost_per_1k_requests"):
        assert found[name] == pytest.approx(value(made(), Figure.read(name))), name
    assert found["requests_failed"] == 1
    assert found["kv_limit_bytes"] == 8 << 20
    assert "joules" not in found, "there was no counter"
    assert settings(made())["target.endpoint"] == "completions"


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """One of OTLP over HTTP: its address, and what it was sent."""
    found: list[ExportMetricsServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/metrics":
                found.append(ExportMetricsServiceRequest.FromString(data))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_figures_and_histograms_of_requests(kvrt: Kvrt, path: Path) -> None:
    with collector() as (url, found):
        result = kvrt("bench", "export", str(path), "--to", "otel", "--at", url)
    assert result.exit_code == 0, result.stderr
    (sent,) = found
    (resource,) = sent.resource_metrics
    names = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert names["service.name"] == "kvrt-bench"
    metrics = {each.name: each for scope in resource.scope_metrics for each in scope.metrics}
    gauges = {name: each.gauge.data_points[0].as_double for name, each in metrics.items()
              if name.startswith("kvrt.bench.")}  # fmt: skip
    assert gauges == pytest.approx({f"kvrt.bench.{k}": v for k, v in figures(load(path)).items()})
    whole = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert sorted(each.count for each in whole) == [1, 5], "one has an error"
    (first,) = metrics["gen_ai.client.operation.time_to_first_chunk"].histogram.data_points
    assert first.sum == pytest.approx(sum(each.ttft or 0 for each in load(path).good))
    usage = metrics["gen_ai.client.token.usage"].histogram.data_points
    assert sorted(each.sum for each in usage) == [5 * 20, 5 * 50]


def test_a_collector_that_takes_nothing_is_an_error(kvrt: Kvrt, path: Path) -> None:
    with collector(status=400) as (url, _):
        result = kvrt("bench", "export", str(path), "--to", "otel", "--at", url)
    assert result.exit_code == 1
    assert f"{url} has not taken run 1" in result.stderr


@pytest.mark.parametrize("program", ["mlflow", "wandb", "otel"])
def test_what_is_not_installed_is_named_with_its_extra(
    kvrt: Kvrt, path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt_cli.extras.find_spec", lambda name: None)
    result = kvrt("bench", "export", str(path), "--to", program)
    assert result.exit_code == 2
    assert f"pip install 'kvrt[{program}]'" in result.stderr


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow does with SQLAlchemy
def test_mlflow_has_figures_settings_series_and_files(
    kvrt: Kvrt, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("mlflow").tracking.MlflowClient
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts beside a database
    at = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        words = ("--to", "mlflow", "--at", at, "--project", "ours")
        result = kvrt("bench", "export", str(path), *words)
        assert result.exit_code == 0, result.stderr
    kept = client(at)
    experiment = kept.get_experiment_by_name("ours")
    one, two = kept.search_runs([experiment.experiment_id])
    assert one.info.run_id != two.info.run_id
    assert one.info.run_name == "run 1"
    assert one.info.status == "FINISHED"
    known = figures(load(path))
    assert {name: one.data.metrics[name] for name in known} == pytest.approx(known)
    assert one.data.params == settings(load(path))
    series = kept.get_metric_history(one.info.run_id, "request/ttft")
    assert [each.value for each in sorted(series, key=lambda each: each.step)] == pytest.approx(
        [each.ttft for each in sorted(load(path).records, key=lambda each: each.end)]
    )
    names = {each.path for each in kept.list_artifacts(one.info.run_id)}
    assert names == {"kvrt-bench.json", "kvrt-bench.html"}


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_mlflow_refuses_is_an_error(kvrt: Kvrt, path: Path) -> None:
    pytest.importorskip("mlflow")
    result = kvrt("bench", "export", str(path), "--to", "mlflow", "--at", "nonsense://x")
    assert result.exit_code == 1
    assert "MLflow has not taken run 1" in result.stderr


@pytest.mark.extra
def test_weights_and_biases_keeps_a_run_for_its_sync(
    kvrt: Kvrt, path: Path, tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb")
    result = kvrt("bench", "export", str(path), "--to", "wandb", "--at", str(tmp_path / "kept"))
    assert result.exit_code == 0, result.stderr
    (folder,) = (tmp_path / "kept" / "wandb").glob("offline-run-*")
    assert str(folder) in result.stderr
    wandb.teardown()  # as the command's process does at its end: then all is written
    rows = kept_by_wandb(next(folder.glob("run-*.wandb")))
    assert [row["request/ttft"] for row in rows["history"]] == pytest.approx(
        [each.ttft for each in sorted(load(path).records, key=lambda each: each.end)]
    )
    known = figures(load(path))
    assert {name: rows["summary"][name] for name in known} == pytest.approx(known)
    assert rows["config"].items() >= settings(load(path)).items()


def kept_by_wandb(path: Path) -> dict[str, Any]:
    """What its own file has: rows of the history, the summary, the configuration."""
    from wandb.proto.wandb_internal_pb2 import Record

    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for data in logged(path.read_bytes()):
        told = Record.FromString(data)
        if told.HasField("history"):
            history.append(dict(map(item, told.history.item)))
        summary |= map(item, told.summary.update)
        config |= map(item, (*told.config.update, *told.run.config.update))
    return {"history": history, "summary": summary, "config": config}


def item(found: Any) -> tuple[str, Any]:
    return found.key or "/".join(found.nested_key), json.loads(found.value_json)


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a file that is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB, in
    which each piece has a checksum of 4 bytes, its length, and whether its record begins (2), goes
    on (3), ends (4) or is whole (1)."""
    at, record = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
