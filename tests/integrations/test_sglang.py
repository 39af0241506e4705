"""SGLang's own factory, base class and failure injector over kvrt's pages: run by ``ci/stores``,
where SGLang is. Its engine runs on no processor here, so a host pool stands in for it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvrt import ConfigError
from kvrt.errors import StoreError
from kvrt.kv.tiers.files import DATA

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore"),  # SGLang's imports have many
]


@dataclass
class Pool:
    """What is asked of SGLang's memory for pages on the host, page first."""

    layout: str = "page_first"
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    def get_dummy_flat_data_page(self) -> Tensor:
        return torch.zeros((2, self.page_size, 3, 2, 8), dtype=self.dtype).flatten()


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    pytest.importorskip("sglang")
    from sglang.srt.mem_cache import hicache_storage as storage
    from sglang.srt.mem_cache.storage import backend_factory as factory

    made: list[Any] = []
    usual = storage.HiCacheStorageConfig(
        tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
        is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=True,
        model_name="some/model",
    )  # fmt: skip

    def make(pool: Pool | None = None, identity: str = "model@1", **changes: object) -> Any:
        options = {
            "backend_name": "kvrt",
            "module_path": "kvrt.integrations.sglang",
            "class_name": "PageStorage",
            "tiers": f"disk:{tmp_path}:64MiB",
            "identity": identity,
        }
        config = replace(usual, extra_config=options, **changes)
        pool = pool or Pool()
        backend = factory.StorageBackendFactory.create_backend("dynamic", config, pool)
        made.append(backend)
        backend.register_mem_pool_host(pool)
        backend.on_host_pools_registered()
        return backend

    yield make
    for one in made:
        one.close()


def pages(count: int) -> list[Tensor]:
    like = Pool().get_dummy_flat_data_page()
    return [torch.randn(like.shape).to(like.dtype) for _ in range(count)]


def test_pages_come_back_as_sglang_reads_and_writes_them(attach: Callable[..., Any]) -> None:
    one, data = attach(), pages(5)
    keys = [f"{number:064x}" for number in range(5)]
    assert one.batch_exists(keys) == 0
    assert one.batch_set(keys[:4], data[:4])
    assert one.batch_exists(keys) == 4
    targets = [Pool().get_dummy_flat_data_page() for _ in keys]
    found = one.batch_get(keys, targets)
    assert found[4] is None
    assert all(torch.equal(*pair) for pair in zip(found[:4], data[:4], strict=True))
    assert one.set(keys[4], data[4])
    assert torch.equal(one.get(keys[4]), data[4])
    one.clear()
    assert one.batch_exists(keys) == 0


def test_a_new_process_finds_them_and_others_do_not(attach: Callable[..., Any]) -> None:
    one, (page,) = attach(), pages(1)
    assert one.set("key", page)
    with pytest.raises(StoreError, match="in use by process"):
        attach()
    one.close()
    two = attach()
    assert torch.equal(two.get("key"), page)
    for other in (
        attach(identity="model@2"),
        attach(Pool(layout="layer_first")),
        attach(tp_rank=1, tp_size=2),
        attach(Pool(dtype=torch.float16)),
    ):
        assert not other.exists("key")


def test_a_damaged_page_is_missing_and_the_pages_before_it_count(
    attach: Callable[..., Any], tmp_path: Path
) -> None:
    one, data = attach(), pages(3)
    assert one.batch_set(["a", "b", "c"], data)
    one.close()
    (file,) = tmp_path.glob(f"*/{DATA}")
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(data[1].view(torch.uint8)))] ^= 1
    file.write_bytes(raw)
    two = attach()
    found = two.batch_get(["a", "b", "c"])
    assert [page is not None for page in found] == [True, False, True]
    assert two.batch_exists(["a", "b", "c"]) == 1


def test_what_it_cannot_keep_is_refused(attach: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="latent attention"):
        attach(is_mla_model=True, tp_size=2)
    with pytest.raises(ConfigError, match="pages of mamba"):
        attach().register_mem_host_pool_v2(Pool(), "mamba")
