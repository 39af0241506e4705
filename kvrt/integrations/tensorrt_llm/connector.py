"""TensorRT-LLM's interface for connectors, over `KeptPages`. One rank, whose two halves are in one
process; caches of one pool, with one kind of layers."""

import json
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from itertools import takewhile
from typing import Any

import torch
from tensorrt_llm._torch.pyexecutor.kv_cache_connector import (
    KvCacheConnectorScheduler,
    KvCacheConnectorWorker,
)
from torch import Tensor

from kvrt.errors import ConfigError, IntegrityError
from kvrt.integrations.pages import KeptPages, model_identity, open_pages
from kvrt.integrations.tensorrt_llm.blocks import Running, block_names
from kvrt.integrations.tiers import TierOptions

OPTIONS = "KVRT_TENSORRT_LLM"
"""The variable that has the options, as JSON: TensorRT-LLM passes none."""

OWN = ("lora_task_id", "cache_salt_id", "prompt_embedding_table", "multimodal_hashes",
       "multimodal_embedding", "py_multimodal_data", "mrope_rotary_cos_sin")  # fmt: skip
"""What may change a request's keys and values beside its tokens."""

READ_AT_ONCE = 1 << 30
"""Bytes of one request that are read ahead of its first pass; what comes after is computed."""

QUEUED = 1 << 30
"""Bytes in host memory that are still to be written; what comes meanwhile is not kept."""

Load = tuple[Tensor, int]
Save = tuple[bytes, int]
_workers: "weakref.WeakSet[PageWorker]" = weakref.WeakSet()


class PageWorker(KvCacheConnectorWorker):
    """Copies blocks of the cache to files and back.

    What is wrong with a disk costs no request: what cannot be written is not kept.

    Args:
        llm_args: TensorRT-LLM's.

    Raises:
        ConfigError: the options are bad, or ranks would have to agree on what they have.
        StoreError: the folder cannot be used.
    """

    def __init__(self, llm_args: Any) -> None:
        super().__init__(llm_args)
        ranks = llm_args.tensor_parallel_size * llm_args.pipeline_parallel_size
        if ranks != 1:
            raise ConfigError(f"kvrt keeps blocks of one rank, and here are {ranks}")
        try:
            given = json.loads(os.environ.get(OPTIONS, "{}"))
        except ValueError as error:
            raise ConfigError(f"{OPTIONS} is no JSON: {error}") from None
        if not isinstance(given, dict):
            raise ConfigError(f"{OPTIONS} is no object of options", fix='{"tiers": "disk:..."}')
        self._options = TierOptions.read(given)
        self._model = model_identity(str(llm_args.model), self._options.identity)
        self._size = int(llm_args.kv_cache_config.tokens_per_block)
        self._pool: Tensor | None = None
        self._pages: KeptPages | None = None
        self._writer = ThreadPoolExecutor(1, "kvrt-tensorrt-llm")
        self._mutex = threading.Lock()
        self._queued = set[bytes]()

    def register_kv_caches(self, kv_cache_tensor: Tensor) -> None:
        """What a block is like is known only now, so the file is opened now.

        Args:
            kv_cache_tensor: [blocks, ...].
        """
        block = kv_cache_tensor[0]
        folder, budget = self._options.disk_alone
        layout = (
            *("tensorrt-llm", version("tensorrt-llm"), str(block.dtype)),
            *(tuple(block.shape), self._size),
        )
        nbytes = block.numel() * block.element_size()
        disk = open_pages(
            folder, self._model, layout, (nbytes,), budget=budget, compress=self._options.compress
        )
        self._pool, self._pages = kv_cache_tensor, KeptPages(disk)
        _workers.add(self)

    def serves(self, llm_args: Any) -> bool:
        """Whether it is of the engine with these arguments."""
        return self._llm_args is llm_args

    def read(self, names: Sequence[bytes]) -> list[Tensor]:
        """The blocks of the longest beginning of `names` that is there and whole."""
        pool, pages = self._pool, self._pages
        if pool is None or pages is None:
            return []
        most = max(1, READ_AT_ONCE // max(1, pool[0].numel() * pool.element_size()))
        there = [*takewhile(pages.has, names[:most])]
        found = [torch.empty(pool.shape[1:], dtype=pool.dtype) for _ in there]
        whole = pages.get(zip(there, found, strict=True))
        return [page for page, _ in takewhile(lambda each: each[1], zip(found, whole, strict=True))]

    def start_load_kv(self, stream: Any) -> None:
        with _on(stream, self._opened):
            for page, block in self._moves[0]:
                self._opened[block].copy_(page)

    def wait_for_layer_load(self, layer_idx: int, stream: Any) -> None:
        """All layers of a block come at once, in the order of the stream."""

    def save_kv_layer(self, layer_idx: int, stream: Any) -> None:
        """All layers of a block go at once, when the pass has ended."""

    def wait_for_save(self, stream: Any) -> None:
        """Blocks are in host memory when it returns, and written meanwhile."""
        pages, pool = self._pages, self._opened
        assert pages is not None, "the pool is there"
        size, wanted = pool[0].numel() * pool.element_size(), list[Save]()
        with self._mutex:
            for name, block in self._moves[1]:
                if name in self._queued or pages.has(name):
                    continue
                if (len(self._queued) + 1) * size > QUEUED:
                    break
                self._queued.add(name)
                wanted.append((name, block))
        if wanted:
            stream.synchronize()
            kept = [(name, pool[block].to("cpu", copy=True)) for name, block in wanted]
            self._writer.submit(self._write, pages, kept)

    def _write(self, pages: KeptPages, kept: Sequence[tuple[bytes, Tensor]]) -> None:
        try:
            pages.put(kept)
        finally:
            with self._mutex:
                self._queued -= {name for name, _ in kept}

    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        return [], []

    def close(self) -> None:
        """What is to be written is written, as far as the disk is quick. Safe to call twice."""
        _workers.discard(self)
        self._writer.shutdown()
        if self._pages is not None:
            self._pages.close()
        self._pool = self._pages = None

    @property
    def _opened(self) -> Tensor:
        if self._pool is None:
            raise ConfigError("TensorRT-LLM has not said what its blocks are like")
        return self._pool

    @property
    def _moves(self) -> tuple[list[Load], list[Save]]:
        moves: tuple[list[Load], list[Save]] | None = self.get_connector_meta()
        return moves or ([], [])


class PageScheduler(KvCacheConnectorScheduler):
    """Says which blocks of a request are in files, and which are to go there.

    What it offers it has read, and checked, before: TensorRT-LLM has no way to be told that a block
    did not come.

    Args:
        llm_args: TensorRT-LLM's.
    """

    def __init__(self, llm_args: Any) -> None:
        super().__init__(llm_args)
        self._size = int(llm_args.kv_cache_config.tokens_per_block)
        self._offers: dict[int, tuple[int, list[Tensor]]] = {}
        self._running: dict[int, Running] = {}
        self._others: set[int] = set()  # of which nothing is kept

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        self._forget(request)
        if any(_says(getattr(request, what, None)) for what in OWN):
            self._others.add(request.request_id)
            return 0, False
        first, rest = divmod(num_computed_tokens, self._size)
        tokens = request.get_tokens(0)
        names = block_names(tokens[: len(tokens) - 1], self._size, [])  # one is to be computed
        if rest or first >= len(names):
            return 0, False
        found = self._worker.read(names[first:]) if self._worker is not None else []
        self._offers[request.request_id] = first, found
        return len(found) * self._size, False

    @property
    def _worker(self) -> PageWorker | None:
        """The other half, of the same engine: a process may have several."""
        return next((each for each in _workers if each.serves(self._llm_args)), None)

    def update_state_after_alloc(self, request: Any, block_ids: list[int]) -> None:
        """`build_connector_meta` is told the same."""

    def build_connector_meta(self, scheduler_output: Any) -> tuple[list[Load], list[Save]]:
        loads, saves = list[Load](), list[Save]()
        new = {each.request_id for each in scheduler_output.new_requests}
        for each in (*scheduler_output.new_requests, *scheduler_output.cached_requests):
            first, pages = self._offers.pop(each.request_id, (0, []))
            if each.request_id in new and each.request_id not in self._others:
                self._running[each.request_id] = Running(self._size, first + len(pages))
            if (running := self._running.get(each.request_id)) is None:
                continue
            saves += running.goes_on(
                each.new_tokens,
                each.new_block_ids,
                each.computed_position,
                each.num_scheduled_tokens,
            )
            blocks = running.blocks[first : first + len(pages)]
            if len(blocks) < len(pages) or min(blocks, default=0) < 0:
                raise IntegrityError(
                    f"request {each.request_id} has no blocks for tokens that it was offered"
                )
            loads += zip(pages, blocks, strict=True)
        return loads, saves

    def request_finished(self, request: Any, cache_block_ids: list[int]) -> bool:
        self._forget(request)
        return False

    def request_reset(self, request: Any) -> None:
        """It has lost its blocks, and runs again from its start."""
        self._running.pop(request.request_id, None)

    def _forget(self, request: Any) -> None:
        self._offers.pop(request.request_id, None)
        self._running.pop(request.request_id, None)
        self._others.discard(request.request_id)


def _says(value: object) -> bool:
    """Whether a field of a request is filled in; it may be a tensor."""
    return value is not None and not (isinstance(value, list | dict) and not value)


def _on(stream: Any, pool: Tensor) -> AbstractContextManager[object]:
    """Copies to the pool run on the stream of the pass."""
    if pool.device.type == "cpu":
        return nullcontext()
    found: AbstractContextManager[object] = torch.get_device_module(pool.device).stream(stream)
    return found
