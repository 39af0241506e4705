"""kvrt runs language models, and manages their KV caches, on whatever hardware is there.

    import kvrt

    with kvrt.Runtime("tiny") as runtime:
        print(runtime.generate("def add(a, b):")[0].text)

`Runtime` needs torch, and loads it when it is first used; importing kvrt loads no torch, touches
no device and starts no thread.
"""

import logging
from typing import TYPE_CHECKING

from kvrt.errors import (
    BackendUnavailable,
    CapacityError,
    ConfigError,
    ContractError,
    DeviceError,
    IntegrityError,
    KvrtError,
    ModelError,
    OutOfMemory,
    RequestError,
    StoreError,
    WeightsUnreadable,
)
from kvrt.outputs import Completion, Delta, Result, Timings, TokenLogprobs, Usage
from kvrt.sampling import SamplingParams
from kvrt.structured.constraint import Constraint

if TYPE_CHECKING:
    from kvrt.aio.runtime import AsyncRuntime
    from kvrt.aio.stream import AsyncStream
    from kvrt.arena import Arena, ArenaStats
    from kvrt.config import RuntimeConfig
    from kvrt.embedding.embedder import Embedder, Embeddings
    from kvrt.embedding.reranker import Ranking, Reranker
    from kvrt.engine.stats import RuntimeStats
    from kvrt.kv.index.events import CacheEvent
    from kvrt.model.chat.templates import Chat
    from kvrt.model.vision.prompt import Illustrated
    from kvrt.runtime import Runtime
    from kvrt.sharing.share import Share
    from kvrt.speech.transcriber import Transcriber
    from kvrt.speech.transcript import Segment, Transcript
    from kvrt.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "Arena",
    "ArenaStats",
    "AsyncRuntime",
    "AsyncStream",
    "BackendUnavailable",
    "CacheEvent",
    "CapacityError",
    "Chat",
    "Completion",
    "ConfigError",
    "Constraint",
    "ContractError",
    "Delta",
    "DeviceError",
    "Embedder",
    "Embeddings",
    "Illustrated",
    "IntegrityError",
    "KvrtError",
    "ModelError",
    "OutOfMemory",
    "Ranking",
    "RequestError",
    "Reranker",
    "Result",
    "Runtime",
    "RuntimeConfig",
    "RuntimeStats",
    "SamplingParams",
    "Segment",
    "Share",
    "StoreError",
    "Stream",
    "Timings",
    "TokenLogprobs",
    "Transcriber",
    "Transcript",
    "Usage",
    "WeightsUnreadable",
    "__version__",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_LAZY = {
    "Arena": "kvrt.arena",
    "ArenaStats": "kvrt.arena",
    "AsyncRuntime": "kvrt.aio.runtime",
    "AsyncStream": "kvrt.aio.stream",
    "Chat": "kvrt.model.chat.templates",
    "Embedder": "kvrt.embedding.embedder",
    "Embeddings": "kvrt.embedding.embedder",
    "Illustrated": "kvrt.model.vision.prompt",
    "Ranking": "kvrt.embedding.reranker",
    "Reranker": "kvrt.embedding.reranker",
    "Runtime": "kvrt.runtime",
    "RuntimeConfig": "kvrt.config",
    "Segment": "kvrt.speech.transcript",
    "Share": "kvrt.sharing.share",
    "Transcriber": "kvrt.speech.transcriber",
    "Transcript": "kvrt.speech.transcript",
    "RuntimeStats": "kvrt.engine.stats",
    "CacheEvent": "kvrt.kv.index.events",
    "Stream": "kvrt.stream",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kvrt' has no attribute {name!r}")
