"""A client for what OpenAI's does not cover of a kvrt server: batches with their progress, failed
lines and results, models, and how the server does; and the shortest way to a streamed chat.

    words     what comes back of files, batches and models, as values
    standing  how the server does, likewise
    errors    what is wrong
    calls     each call, as a value
    lines     streams, line by line
    inputs    what a batch is begun with
    sync      `Client`
    aio       `AsyncClient`

    with kvrt.client.Client() as client:
        batch = client.batches.start("requests.jsonl")
        for batch in client.batches.watch(batch.id):
            print(batch.request_counts.completed, "of", batch.request_counts.total)
        for answer in client.batches.results(batch):
            print(answer.custom_id, answer.body)

Needs ``kvrt[client]``. The same for browsers and Node is in ``clients/typescript``.
"""

from kvrt.client.aio import AsyncBatches, AsyncClient
from kvrt.client.errors import ServerError
from kvrt.client.standing import Status
from kvrt.client.sync import Batches, Client
from kvrt.client.words import (
    Answer,
    Batch,
    Failure,
    File,
    Model,
    ModelEvent,
    ModelStatus,
    Progress,
    Usage,
)

__all__ = [
    "Answer",
    "AsyncBatches",
    "AsyncClient",
    "Batch",
    "Batches",
    "Client",
    "Failure",
    "File",
    "Model",
    "ModelEvent",
    "ModelStatus",
    "Progress",
    "ServerError",
    "Status",
    "Usage",
]
