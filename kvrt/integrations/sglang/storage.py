"""SGLang's interface for storage behind its host memory, over `KeptPages`."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
from torch import Tensor

from kvrt.errors import ConfigError
from kvrt.integrations.pages import KeptPages, model_identity, open_pages
from kvrt.integrations.tiers import TierOptions


class PageStorage(HiCacheStorage):
    """Pages of one rank, by SGLang's hashes of their tokens.

    A page that is damaged, or that the disk cannot give, is not there. Its options are those of
    `TierOptions`.

    Args:
        storage_config: SGLang's.
        kwargs: SGLang gives none.

    Raises:
        ConfigError: the options do not fit, or ranks would have to share a folder.
        StoreError: the folder cannot be used.
    """

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        self._config = storage_config
        self._options = TierOptions.read(storage_config.extra_config or {})
        if storage_config.is_mla_model and storage_config.tp_size > 1:
            raise ConfigError("pages that several ranks share are not kept: latent attention")
        self._model = model_identity(storage_config.model_name or "", self._options.identity)
        self._pages: KeptPages | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """What a page is like is known only now, so the file is opened now."""
        super().register_mem_pool_host(mem_pool_host)
        page: Tensor = mem_pool_host.get_dummy_flat_data_page()
        folder, budget = self._options.disk_alone
        config = self._config
        ranks = [
            (getattr(config, f"{axis}_rank"), getattr(config, f"{axis}_size"))
            for axis in ("tp", "pp", "attn_cp", "dcp")
        ]
        layout = (
            *("sglang", version("sglang"), str(page.dtype), page.numel()),
            *(mem_pool_host.layout, mem_pool_host.page_size, ranks, config.dp_rank),
        )
        self._pages = KeptPages(
            open_pages(
                folder,
                self._model,
                layout,
                (page.numel() * page.element_size(),),
                budget=budget,
                compress=self._options.compress,
            )
        )

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        raise ConfigError(f"pages of {host_pool_name}, beside those of attention, are not kept")

    def exists(self, key: str) -> bool:
        return self._opened.has(key.encode())

    def get(
        self, key: str, target_location: Tensor | None = None, target_sizes: Any = None
    ) -> Tensor | None:
        return self.batch_get([key], [self._target(target_location)])[0]

    def batch_get(
        self,
        keys: Sequence[str],
        target_locations: Sequence[Tensor] | None = None,
        target_sizes: Any = None,
    ) -> list[Tensor | None]:
        targets = target_locations or [self._target(None) for _ in keys]
        whole = self._opened.get(zip(map(str.encode, keys), targets, strict=True))
        return [page if ok else None for page, ok in zip(targets, whole, strict=True)]

    def set(
        self,
        key: str,
        value: Tensor | None = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: Sequence[str],
        values: Sequence[Tensor | None] | None = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        pages = [torch.as_tensor(value).contiguous() for value in values or ()]
        return all(self._opened.put(zip(map(str.encode, keys), pages, strict=True)))

    def clear(self) -> None:
        self._opened.clear()

    def close(self) -> None:
        """What is to be written is written, as far as the disk is quick."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    @property
    def _opened(self) -> KeptPages:
        if self._pages is None:
            raise ConfigError("SGLang has not said what its pages are like, or has closed them")
        return self._pages

    def _target(self, given: Tensor | None) -> Tensor:
        found: Tensor = self.mem_pool_host.get_dummy_flat_data_page() if given is None else given
        return found
