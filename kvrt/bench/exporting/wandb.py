"""A run as one of Weights & Biases: figures as its summary, settings as its configuration, requests
as its history and a table, the result and the page as an artifact."""

from pathlib import Path
from tempfile import TemporaryDirectory

from kvrt.bench.exporting.files import write_files
from kvrt.bench.exporting.flat import ended, figures, numbers, settings
from kvrt.bench.words import Run
from kvrt.errors import KvrtError

TIME = "request/end"
"""What the history of requests goes by: seconds since the run began."""


def export(run: Run, project: str, at: str | None = None) -> str:
    """Tell Weights & Biases of a run. Which server, as whom, and whether at all now, is in its own
    variables: ``WANDB_MODE=offline`` keeps it for ``wandb sync``.

    Args:
        project: which is made if it is not there.
        at: a folder that keeps it for ``wandb sync``, and nothing is sent; None: as the variables
            say.

    Returns:
        Where it is, for people.

    Raises:
        KvrtError: it refuses, or cannot be reached.
    """
    import wandb

    try:
        made = wandb.init(
            project=project, name=run.name, job_type="kvrt-bench", config=settings(run),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
            mode=None if at is None else "offline", dir=at,
        )  # fmt: skip
        with made:
            made.define_metric("request/*", step_metric=TIME)
            for record in ended(run):
                known = {f"request/{name}": value for name, value in numbers(record).items()}
                made.log({TIME: record.end, **known})
            made.summary.update(figures(run))
            artifact = wandb.Artifact("kvrt-bench", type="benchmark")
            with TemporaryDirectory() as folder:
                for path in write_files(run, Path(folder)):
                    artifact.add_file(str(path))
                made.log_artifact(artifact)
    except (wandb.Error, OSError) as error:
        raise KvrtError(f"Weights & Biases has not taken {run.name}: {error}") from None
    if made.offline:
        return f"{Path(made.dir).parent}, for wandb sync"
    return str(made.url)
