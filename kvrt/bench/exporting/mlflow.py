"""A run as one of MLflow's: figures as metrics, settings as parameters, requests as series."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvrt.bench.exporting.files import write_files
from kvrt.bench.exporting.flat import begun, ended, figures, numbers, settings
from kvrt.bench.words import Run
from kvrt.errors import KvrtError

METRICS, PARAMS = 1000, 100
"""In one call, at most, as MLflow's API has it."""

LONGEST = 6000
"""Characters of a parameter, likewise."""


def export(run: Run, project: str, at: str | None = None) -> str:
    """Tell MLflow of a run.

    Args:
        project: the experiment, which is made if it is not there.
        at: the tracking URI; None: the variable ``MLFLOW_TRACKING_URI``, else as MLflow decides.

    Returns:
        Where it is, for people.

    Raises:
        KvrtError: MLflow refuses, or cannot be reached. What it had taken is a run that failed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(at)
        there = client.get_experiment_by_name(project)
        experiment = there.experiment_id if there else client.create_experiment(project)
        at_ms = round(1000 * begun(run))
        number = client.create_run(experiment, start_time=at_ms, run_name=run.name).info.run_id
        status = "FAILED"
        try:
            _fill(client, number, run, at_ms)
            status = "FINISHED"
        finally:
            client.set_terminated(number, status, at_ms + round(1000 * run.seconds))
    except (MlflowException, OSError) as error:
        raise KvrtError(f"MLflow has not taken {run.name}: {_first_line(error)}") from None
    return f"run {number} of the experiment {project}"


def _fill(client: Any, number: str, run: Run, at_ms: int) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(name, value[:LONGEST]) for name, value in settings(run).items()]
    for part in _parts(params, PARAMS):
        client.log_batch(number, params=part)
    metrics = [Metric(name, value, at_ms, 0) for name, value in figures(run).items()]
    for step, record in enumerate(ended(run)):
        ends = at_ms + round(1000 * record.end)
        for name, value in numbers(record).items():
            metrics.append(Metric(f"request/{name}", value, ends, step))
    for part in _parts(metrics, METRICS):
        client.log_batch(number, metrics=part)
    with TemporaryDirectory() as folder:
        for path in write_files(run, Path(folder)):
            client.log_artifact(number, str(path))


def _parts(values: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (values[begin : begin + most] for begin in range(0, len(values), most))


def _first_line(error: Exception) -> str:
    return f"{error}".strip().split("\n", 1)[0][:300] or type(error).__name__
