"""llama.cpp by its library, as `llama-cpp-python` builds it for this processor.

Requests are computed together: all prompts, as many tokens at once as a batch holds, then a token
of each at a time. Nothing is between this and the library, no server and no sampler but the
greatest logit, so it is at its best.
"""

import ctypes
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from tests.bench.peers.work import Answer, Request

BATCH = 2048
CONTEXTS = 256
"""A context's size is a multiple of it."""


class Driver:
    """
    Args:
        kv: type of the KV cache; its own default is F16.
    """

    def __init__(self, path: Path, threads: int, kv: str = "F16") -> None:
        llama_cpp.llama_backend_init()
        how = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._words = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._kv = getattr(llama_cpp, f"GGML_TYPE_{kv}")
        self._threads = threads
        self._shape = (0, 0)
        self._context: Any = None
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.versions = {"llama-cpp-python": llama_cpp.__version__}

    def prepare(self, requests: list[Request]) -> None:
        """A context of the size that is needed, with nothing in it."""
        longest = max(len(request.prompt) + request.new for request in requests)
        shape = (len(requests), -(-longest // CONTEXTS) * CONTEXTS)
        if shape != self._shape:
            if self._context:
                llama_cpp.llama_free(self._context)
            how = llama_cpp.llama_context_default_params()
            how.n_seq_max, how.n_ctx, how.n_batch = shape[0], shape[0] * shape[1], BATCH
            how.n_threads = how.n_threads_batch = self._threads
            how.type_k = how.type_v = self._kv
            self._context, self._shape = llama_cpp.llama_init_from_model(self._model, how), shape
            self._decode([(0, 500, 0, True)])
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def run(self, requests: list[Request]) -> list[Answer]:
        begun = time.perf_counter()
        made: list[list[int]] = [[] for _ in requests]
        first, last = [0.0] * len(requests), [0.0] * len(requests)
        rows = [
            (at, token, place, place == len(request.prompt) - 1)
            for at, request in enumerate(requests)
            for place, token in enumerate(request.prompt)
        ]
        while rows:
            for part in range(0, len(rows), BATCH):
                tokens = self._decode(rows[part : part + BATCH])
                now = time.perf_counter() - begun
                for at, token in tokens:
                    made[at].append(token)
                    first[at], last[at] = first[at] or now, now
            rows = [
                (at, tokens[-1], len(request.prompt) + len(tokens) - 1, True)
                for at, (request, tokens) in enumerate(zip(requests, made, strict=True))
                if len(tokens) < request.new
            ]
        return [Answer(*each) for each in zip(made, first, last, strict=True)]

    def _decode(self, rows: Iterable[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """Compute tokens, each (sequence, id, position, whether the next one is wanted).

        Returns:
            the next token of each sequence of which it was wanted.
        """
        wanted, batch = [], self._batch
        for row, (sequence, token, place, last) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, place, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, last
            batch.n_tokens = row + 1
            if last:
                wanted.append((row, sequence))
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode says {status}")
        return [(sequence, self._greatest(row)) for row, sequence in wanted]

    def _greatest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        numbers = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._words)).contents
        return int(np.frombuffer(numbers, dtype=np.float32).argmax())
