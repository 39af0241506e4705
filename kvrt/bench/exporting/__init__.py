"""Runs, told to programs that keep results of many: MLflow, Weights & Biases, OpenTelemetry.

    flat      a run as names and numbers, which all of them take
    mlflow    a run of an experiment, with its result and its page as artifacts
    wandb     a run of a project, likewise, with a table of requests
    otel      metrics by OTLP over HTTP, by the conventions for generative AI

Each needs an extra of its name. Times are seconds, sizes bytes, shares from 0 to 1. What is not
known is left out.
"""
