"""What the operator is started with."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the operator.

    Args:
        image: of models that name none.
        namespace: its own, where claims are.
        seconds: from one look at a model to the next.
        port: of servers.
        liveness: where it says that it lives; empty: nowhere.
    """

    image: str
    namespace: str
    seconds: float
    port: int
    liveness: str


def read_settings(args: Sequence[str] | None = None) -> Settings:
    """Of the command line."""
    parser = argparse.ArgumentParser("kvrt-operator", description="Serves Model resources.")
    add = parser.add_argument
    add("--image", required=True, help="of models that name none")
    add("--namespace", default=os.environ.get("POD_NAMESPACE", "kvrt-operator"),
        help="its own, where claims are (default: %(default)s)")  # fmt: skip
    add("--seconds", type=float, default=10.0,
        help="from one look at a model to the next (default: %(default)s)")  # fmt: skip
    add("--port", type=int, default=8000, help="where replicas answer (default: %(default)s)")
    add("--liveness", default="http://0.0.0.0:8080/healthz",
        help="where it says that it lives (default: %(default)s)")  # fmt: skip
    return Settings(**vars(parser.parse_args(args)))
