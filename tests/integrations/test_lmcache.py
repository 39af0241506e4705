"""LMCache's own launcher of plug-ins, keys and memory over kvrt's pages: run by ``ci/stores``,
where LMCache is. Nothing of it runs an engine."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt.kv.tiers.files import DATA

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore"),  # LMCache's imports have many
]

SHAPE = (2, 2, 256, 2, 8)
"""Of a chunk: layers, keys and values, tokens, heads, size of a head."""


class Memory:
    """Where LMCache's own objects come from: as its `LocalCPUBackend`, without limit."""

    def allocate(self, shape: Any, dtype: torch.dtype, fmt: Any) -> Any:
        from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj

        data = torch.zeros(shape, dtype=dtype)
        meta = MemoryObjMetadata(torch.Size(shape), dtype, 0, data.nbytes, 1, 0, fmt)
        return TensorMemoryObj(data.view(torch.uint8).flatten(), meta, parent_allocator=None)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    pytest.importorskip("lmcache")
    from lmcache.v1 import storage_backend as backends
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata

    loop, made = asyncio.new_event_loop(), []

    def make(identity: str = "model@1", worker: int = 0) -> Any:
        config = LMCacheEngineConfig.from_defaults(chunk_size=256)
        config.storage_plugins = ["kvrt"]
        config.extra_config = {
            "storage_plugin.kvrt.module_path": "kvrt.integrations.lmcache",
            "storage_plugin.kvrt.class_name": "ChunkBackend",
            "kvrt.tiers": f"disk:{tmp_path}:64MiB",
            "kvrt.identity": identity,
        }
        metadata = LMCacheMetadata("some/model", 2, 2, worker, worker, torch.bfloat16, SHAPE)
        found: OrderedDict[str, Any] = OrderedDict()
        backends.storage_plugin_launcher(config, metadata, loop, Memory(), "cpu", found)
        if "kvrt" not in found:
            return None
        made.append(found["kvrt"])
        return made[-1]

    yield make
    for one in made:
        one.close()
    loop.close()


def key(number: int) -> Any:
    from lmcache.utils import CacheEngineKey

    return CacheEngineKey("some/model", 2, 0, number, torch.bfloat16)


def chunk(tokens: int = 256) -> Any:
    from lmcache.v1.memory_management import MemoryFormat

    one = Memory().allocate((2, 2, tokens, 16), torch.bfloat16, MemoryFormat.KV_2LTD)
    one.tensor.copy_(torch.randn(one.tensor.shape))
    return one


def put(backend: Any, keys: list[Any], chunks: list[Any]) -> list[Any]:
    done: list[Any] = []
    for each in backend.batched_submit_put_task(keys, chunks, on_complete_callback=done.append):
        each.result(60)
    return done


def test_chunks_come_back_as_lmcache_reads_and_writes_them(launch: Callable[..., Any]) -> None:
    one, chunks = launch(), [chunk() for _ in range(3)]
    keys = [key(number) for number in range(4)]
    assert put(one, keys[:3], chunks) == keys[:3]
    assert one.batched_contains(keys) == 3
    assert not one.exists_in_put_tasks(keys[0])
    found = one.batched_get_blocking(keys)
    assert found[3] is None
    for got, kept in zip(found[:3], chunks, strict=True):
        assert torch.equal(got.tensor, kept.tensor)
        assert got.metadata.fmt == kept.metadata.fmt
        assert kept.get_ref_count() == 1
    assert one.pin(keys[0])
    assert one.remove(keys[0])
    assert not one.contains(keys[0])
    assert one.get_blocking(keys[0]) is None


def test_a_new_process_finds_them_and_others_do_not(launch: Callable[..., Any]) -> None:
    one = launch()
    put(one, [key(1)], [chunk()])
    assert launch() is None  # its folder is in use, which LMCache logs
    one.close()
    assert launch().contains(key(1))
    assert not launch(identity="model@2").contains(key(1))
    assert not launch(worker=1).contains(key(1))


def test_a_chunk_that_is_not_full_or_was_damaged_is_missing(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    one, full = launch(), chunk()
    assert one.batched_submit_put_task([key(1)], [chunk(100)]) is None
    put(one, [key(2)], [full])
    one.close()
    (file,) = tmp_path.glob(f"*/{DATA}")
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(full.tensor.view(torch.uint8).flatten()))] ^= 1
    file.write_bytes(raw)
    two = launch()
    assert not two.contains(key(1))
    assert two.get_blocking(key(2)) is None
    assert not two.contains(key(2))
