"""LMCache's interface for storage plug-ins, over `KeptPages`."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from math import prod
from typing import Any

from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface

from kvrt.errors import ConfigError
from kvrt.integrations.pages import KeptPages, model_identity, open_pages
from kvrt.integrations.tiers import TierOptions

PREFIX = "kvrt."
"""Of its options in LMCache's ``extra_config``."""


class ChunkBackend(StoragePluginInterface):
    """Whole chunks of one worker, by LMCache's keys; one that is not full is not kept.

    A chunk that is damaged, or that the disk cannot give, is not there. A pinned one may make room
    for others all the same: then it is not there. Its options are those of `TierOptions`.

    Raises:
        ConfigError: the options do not fit, or chunks are not of one shape.
        StoreError: the folder cannot be used.
    """

    def __init__(
        self,
        config: Any = None,
        metadata: Any = None,
        local_cpu_backend: Any = None,
        loop: Any = None,
        dst_device: str = "cpu",
    ) -> None:
        super().__init__(dst_device, config, metadata, local_cpu_backend, loop)
        if config.use_layerwise:
            raise ConfigError("kvrt keeps whole chunks", fix="use_layerwise: false")
        given = (config.extra_config or {}).items()
        options = TierOptions.read(
            {name.removeprefix(PREFIX): value for name, value in given if name.startswith(PREFIX)}
        )
        try:
            (self._shape,), (self._dtype,) = metadata.get_shapes(), metadata.get_dtypes()
        except ValueError:
            raise ConfigError("kvrt keeps chunks of one group of layers; here are more") from None
        self._nbytes = prod(self._shape) * self._dtype.itemsize
        self._format = MemoryFormat.KV_MLA_FMT if metadata.use_mla else MemoryFormat.KV_2LTD
        folder, budget = options.disk_alone
        layout = (
            *("lmcache", version("lmcache"), str(self._dtype), tuple(self._shape)),
            *(self._format.name, metadata.worker_id, metadata.world_size),
        )
        model = model_identity(metadata.model_name, options.identity)
        self._pages = KeptPages(
            open_pages(
                folder, model, layout, (self._nbytes,), budget=budget, compress=options.compress
            )
        )
        self._mutex = threading.Lock()
        self._putting: set[bytes] = set()
        self._writer = ThreadPoolExecutor(1, "kvrt-lmcache")

    def contains(self, key: Any, pin: bool = False) -> bool:
        return self._pages.has(_name(key))

    def exists_in_put_tasks(self, key: Any) -> bool:
        with self._mutex:
            return _name(key) in self._putting

    def batched_submit_put_task(
        self,
        keys: Sequence[Any],
        objs: Sequence[Any],
        transfer_spec: Any = None,
        on_complete_callback: Callable[[Any], None] | None = None,
    ) -> list[Future[None]] | None:
        """Their memory is in use until they are written."""
        wanted = []
        with self._mutex:
            for key, each in zip(keys, objs, strict=True):
                name = _name(key)
                full = each.tensor is not None and each.tensor.nbytes == self._nbytes
                if full and name not in self._putting and not self._pages.has(name):
                    self._putting.add(name)
                    each.ref_count_up()
                    wanted.append((key, each))
        if not wanted:
            return None
        return [self._writer.submit(self._put, wanted, on_complete_callback)]

    def _put(self, wanted: Sequence[Any], done: Callable[[Any], None] | None) -> None:
        try:
            kept = self._pages.put((_name(key), each.tensor) for key, each in wanted)
        finally:
            with self._mutex:
                self._putting -= {_name(key) for key, _ in wanted}
            for _, each in wanted:
                each.ref_count_down()
        for (key, _), there in zip(wanted, kept, strict=True):
            if there and done is not None:
                done(key)

    def get_blocking(self, key: Any) -> Any:
        return self.batched_get_blocking([key])[0]

    def batched_get_blocking(self, keys: Sequence[Any]) -> list[Any]:
        backend = self.get_allocator_backend()
        objs = [
            backend.allocate(self._shape, self._dtype, self._format) if self.contains(key) else None
            for key in keys
        ]
        asked = [(key, each) for key, each in zip(keys, objs, strict=True) if each is not None]
        whole = self._pages.get((_name(key), each.tensor) for key, each in asked)
        lost = [each for (_, each), ok in zip(asked, whole, strict=True) if not ok]
        for each in lost:
            each.ref_count_down()
        return [None if any(each is one for one in lost) else each for each in objs]

    def pin(self, key: Any) -> bool:
        return self.contains(key)

    def unpin(self, key: Any) -> bool:
        return self.contains(key)

    def remove(self, key: Any, force: bool = True) -> bool:
        return self._pages.remove(_name(key))

    def get_allocator_backend(self) -> Any:
        return self.local_cpu_backend

    def touch_cache(self) -> None:
        """Reading a page is using it."""

    def close(self) -> None:
        """What is to be written is written, as far as the disk is quick."""
        self._writer.shutdown()
        self._pages.close()


def _name(key: Any) -> bytes:
    text: str = key.to_string()
    return text.encode()
