"""Bodies of pages, as they are or compressed."""

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from kvrt.errors import ConfigError, StoreError
from kvrt.kv.tiers.blockfile import Bytes
from kvrt.kv.tiers.format import RAW, ZSTD

_FIX = "pip install 'kvrt[zstd]'"


class Codec:
    """Compresses with zstd, if asked to; decompresses what was.

    Args:
        level: zstd's, from 1 (fast) to 19 (small); negative is faster still. None: not at all.

    Raises:
        ConfigError: a level that zstd does not have, or zstandard is not installed.
    """

    def __init__(self, level: int | None) -> None:
        self._level = level
        self._local = threading.local()  # zstd's contexts serve one thread each
        self._zstd = _zstandard()
        if level is None:
            return
        if self._zstd is None:
            raise ConfigError("compression needs zstandard, which is not installed", fix=_FIX)
        if not -100 <= level <= self._zstd.MAX_COMPRESSION_LEVEL:
            raise ConfigError(f"zstd has no level {level}", fix="use one from 1 to 19")

    @property
    def compresses(self) -> bool:
        return self._level is not None

    def check(self, codec: int, folder: Path) -> None:
        """Raises `StoreError` if bodies of this codec cannot be read here."""
        if codec == ZSTD and self._zstd is None:
            raise StoreError(
                f"{folder} has compressed pages, and zstandard is not installed",
                reason="codec",
                fix=_FIX,
            )

    def compress(self, data: Bytes) -> tuple[int, Bytes]:
        """The codec and body to store for a page: compressed, where that makes it smaller."""
        if self._zstd is not None and self._level is not None:
            if not hasattr(self._local, "compressor"):
                self._local.compressor = self._zstd.ZstdCompressor(level=self._level)
            body = self._local.compressor.compress(data)
            if len(body) < len(data):
                return ZSTD, np.frombuffer(body, np.uint8)
        return RAW, data

    def decompress(self, body: Bytes, into: Bytes) -> bool:
        """Fill `into` from a compressed body; false if it is not one of exactly that length."""
        assert self._zstd is not None  # `check` was called
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = self._zstd.ZstdDecompressor()
        try:
            page = self._local.decompressor.decompress(body, max_output_size=len(into))
        except self._zstd.ZstdError:
            return False
        if len(page) != len(into):
            return False
        into[:] = np.frombuffer(page, np.uint8)
        return True


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ModuleNotFoundError:
        return None
