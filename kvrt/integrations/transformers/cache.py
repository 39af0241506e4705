"""A transformers cache whose keys and values are in kvrt's pages."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    LinearAttentionCacheLayerMixin,
    get_layer_types_and_kwargs,
)

from kvrt.checks import Checks, Maybe, Size, Text, Whole, check_options
from kvrt.errors import ConfigError
from kvrt.integrations.transformers.pages import BatchPages
from kvrt.kv.stats import CacheStats
from kvrt.registry import AUTO, open_device
from kvrt.spi import AttentionParams, Capability, Device, DType, KVLayout
from kvrt.units import parse_bytes

NAME = "kvrt"
"""Of the attention that reads these pages."""

_DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

_WINDOWS = {"full_attention": False, "sliding_attention": True}
"""The kinds of layers that pages can serve, and whether they have a window."""

OPTIONS: Checks = {
    "memory_limit": Maybe(Size()),
    "page_size": Whole(1, 1024),
    "backend": Maybe(Text()),
}


class PagedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a `KvrtCache`, which keeps what it is given.

    Args:
        cache: it belongs to.
        group: of layers that see as far back.
        place: in the group.
        window: how many positions it sees; 0: all.
    """

    supports_early_init = False

    def __init__(self, cache: "KvrtCache", group: int, place: int, window: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.group, self.place, self.window = cache, group, place, window
        self.is_sliding = window > 0
        self.is_croppable = not window
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("pages are laid out for all layers at once")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The same keys and values: they are stored where the attention is called, which knows
        which of them are padding.

        Raises:
            ConfigError: the model has another attention, which would see these alone.
        """
        self.cache.check_attention()
        key_states.kvrt = Fresh(self, key_states, value_states)  # type: ignore[attr-defined]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class Fresh:
    """Keys and values of a step, on their way from a layer's cache to its attention."""

    def __init__(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> None:
        self._layer, self._keys, self._values = layer, keys, values
        self._stored = False
        self.window = layer.window

    def attend(self, queries: Tensor, mask: Tensor | None, params: AttentionParams) -> Tensor:
        """Store them, once, and let the queries see them and all before.

        Args:
            queries: [rows, heads, tokens, dim].
            mask: bool [rows, tokens before and new], False for padding; None: there is none.

        Returns:
            [rows, tokens, heads, dim of a value]; of padding: 0.
        """
        layer, cache = self._layer, self._layer.cache
        if not self._stored:
            if layer.length == cache.length:
                cache.begin(self._keys, self._values, mask)
            cache.pages.append(
                layer.group, layer.place, cache.real(self._keys), cache.real(self._values)
            )
            layer.length = cache.length
            self._stored = True
        real = cache.real(queries)
        out = real.new_empty((*real.shape[:2], self._values.shape[-1]))
        cache.pages.attend(layer.group, layer.place, real, out, params)
        rows, heads, tokens, _ = queries.shape
        return cache.with_padding(out, rows * tokens).view(rows, tokens, heads, -1)


class KvrtCache(Cache):
    """Keys and values in kvrt's pages: give it to `generate` as ``past_key_values``.

    Memory is taken as sequences grow and given back as they go; beams share the pages of what they
    have in common. The device is opened when the first keys come, where they are. Close the cache
    when you are done; as a context manager it closes itself.

    Args:
        config: of the model, whose attention must be `NAME`.
        memory_limit: physical memory that it may take: bytes, or a string such as ``4GiB`` or
            ``50%`` (of the device's). None: all that the device has free.
        page_size: tokens in a page.
        backend: that has the device; None: the CPU's for a model on the CPU, else the first that
            can be used.

    Raises:
        ConfigError: an option has a bad value, or the model has layers that keep no keys and
            values, or see neither everything nor a window.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        memory_limit: int | str | None = None,
        page_size: int = 16,
        backend: str | None = None,
    ) -> None:
        given = check_options(
            OPTIONS, memory_limit=memory_limit, page_size=page_size, backend=backend
        )
        self._memory_limit, self._backend = given["memory_limit"], given["backend"]
        self._page_size = given["page_size"]
        self._config = config.get_text_config(decoder=True)
        self._device: Device | None = None
        self._pages: BatchPages | None = None
        self._real: Tensor | None = None
        self.length = 0
        """Tokens of each row, padding included."""
        windows = _windows(self._config)
        self._windows = [*dict.fromkeys(window for window in windows if window is not None)]
        placed = dict.fromkeys(self._windows, 0)
        layers: list[CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer] = []
        for window in windows:
            if window is None:
                layers.append(DummyLayer())  # type: ignore[no-untyped-call]
                continue
            layers.append(PagedLayer(self, self._windows.index(window), placed[window], window))
            placed[window] += 1
        self._layers_of = [placed[window] for window in self._windows]
        super().__init__(layers=layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give all memory back. Safe to call twice; nothing else may be called after it."""
        if self._pages is not None:
            self._pages.close()
        if self._device is not None:
            self._device.close()

    @property
    def stats(self) -> CacheStats | None:
        """Of the pages; None: there have been none yet."""
        return None if self._pages is None else self._pages.stats()

    # --- what transformers asks of all layers at once ------------------------------------------

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._pages is not None:
            rows = range(len(self._pages.lengths))
            self._select([row for row in rows for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of each row, as many as the negative of `tokens_to_remove`.

        Raises:
            ConfigError: it is positive, or there are not so many, or layers have a window, and so
                have given up what a shorter row would see.
        """
        if not tokens_to_remove or self._pages is None:
            return
        if tokens_to_remove > 0 or -tokens_to_remove > min(self._pages.lengths):
            raise ConfigError(
                f"{-tokens_to_remove} tokens cannot be forgotten of rows that have from"
                f" {min(self._pages.lengths)} on"
            )
        if not self.is_croppable:
            raise ConfigError("layers with a window cannot go back to fewer tokens")
        self._pages.cut(-tokens_to_remove)
        self._set_length(self.length + tokens_to_remove)

    def reset(self) -> None:
        """Forget everything, and give its memory back: the next rows may be others."""
        if self._pages is not None:
            self._pages.clear()
        self._set_length(0)

    # --- what its layers ask of it -------------------------------------------------------------

    @property
    def pages(self) -> BatchPages:
        assert self._pages is not None, "a step has begun"
        return self._pages

    def check_attention(self) -> None:
        """The model attends with what reads these pages.

        Raises:
            ConfigError: it does not.
        """
        found = self._config._attn_implementation
        if found != NAME:
            raise ConfigError(
                f"the model's attention is {found!r}, which cannot read kvrt's pages",
                fix=f"call model.set_attn_implementation({NAME!r})",
            )

    def begin(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """The first layer of a step has come, with new tokens of each row. See `Fresh.attend`.

        Raises:
            CapacityError: there is no memory for them.
            ConfigError: keys, or what is padding, do not go with what is here.
        """
        if self._pages is None:
            self._open(keys, values)
        rows, _, tokens, _ = keys.shape
        known = self.pages.lengths
        if known and len(known) != rows:
            raise ConfigError(
                f"the cache has {len(known)} rows and was given {rows}", fix="reset() it before"
            )
        known, fresh = known or [0] * rows, [tokens] * rows
        self._real = None
        if mask is None:
            before = [self.length] * rows
        else:
            past, new = mask[:, : self.length], mask[:, self.length :]
            before, fresh = past.sum(1).tolist(), new.sum(1).tolist()
            if any(self._windows) and (mask[:, 1:] < mask[:, :-1]).any():
                raise ConfigError("layers with a window need padding on the left")
            self._real = new.reshape(-1).nonzero().view(-1)
        if before != known:
            raise ConfigError(
                "the attention mask has other tokens as padding than in the steps before"
            )
        self.pages.begin(fresh)
        self.length += tokens

    def real(self, states: Tensor) -> Tensor:
        """[rows, heads, tokens, dim] as [tokens of all rows, heads, dim], without padding."""
        flat = states.transpose(1, 2).flatten(0, 1)
        return flat if self._real is None else flat[self._real]

    def with_padding(self, out: Tensor, tokens: int) -> Tensor:
        """The other way round, with zeros for padding."""
        if self._real is None:
            return out
        return out.new_zeros((tokens, *out.shape[1:])).index_copy_(0, self._real, out)

    # --- within --------------------------------------------------------------------------------

    def _select(self, rows: list[int]) -> None:
        if self._pages is not None:
            self._pages.select(rows)

    def _set_length(self, length: int) -> None:
        self.length = length
        for layer in self.layers:
            if isinstance(layer, PagedLayer):
                layer.length = length

    def _open(self, keys: Tensor, values: Tensor) -> None:
        where = keys.device
        backend = self._backend or ("cpu" if where.type == "cpu" else AUTO)
        self._device = device = open_device(backend, where.index or 0)
        info, (_, heads, _, dim), value_dim = device.info, keys.shape, values.shape[-1]
        if torch.device(info.torch_device) != where:
            raise ConfigError(
                f"the model is on {where}, and the backend {info.backend!r} on {info.torch_device}",
                fix="name the backend of the model's device",
            )
        if value_dim != dim and Capability.VALUE_WIDTHS not in info.capabilities:
            raise ConfigError(f"{info.backend} has no values of another width than keys")
        limit = self._memory_limit
        if limit is None:
            limit = device.memory.info().free
        elif isinstance(limit, str):
            limit = parse_bytes(limit, whole=info.total_bytes)
        layouts = [
            KVLayout.packed(
                _DTYPES[keys.dtype],
                layers=layers,
                kv_heads=heads,
                head_dim=dim,
                page_size=self._page_size,
                value_dim=value_dim,
            )
            for layers in self._layers_of
        ]
        self._pages = BatchPages(device, layouts, self._windows, limit)


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Of each layer, how far back it sees; 0: everything, None: it keeps nothing of its own.

    Raises:
        ConfigError: a layer is of another kind.
    """
    kinds, settings = get_layer_types_and_kwargs(config)
    windows: list[int | None] = []
    for at, (kind, setting) in enumerate(zip(kinds, settings, strict=True)):
        if kind == "dummy":
            windows.append(None)
        elif kind not in _WINDOWS:
            raise ConfigError(f"layer {at} is of kind {kind!r}, which pages cannot serve")
        else:
            windows.append(setting["sliding_window"] if _WINDOWS[kind] else 0)
    return windows
