"""The adapters that a runtime has, by the names that requests have for them."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from kvrt.errors import ConfigError, RequestError
from kvrt.model.lora.adapter import Adapter, Adapters
from kvrt.model.lora.gguf import read_gguf
from kvrt.model.lora.peft import read_peft


class NamedAdapters:
    """Any thread may ask. An adapter that is not named any more stays with the requests that have
    it, and its memory goes back when the last of them has ended.

    Args:
        adapters: of the model.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._names: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def load(self, name: str, path: Path) -> None:
        """See `kvrt.Runtime.load_adapter`."""
        self._check_free(name)
        self._adapters.check()
        adapter = self._adapters.make(read_peft(path) if path.is_dir() else read_gguf(path))
        with self._lock:
            self._check_free(name)
            self._names[name] = adapter

    def _check_free(self, name: str) -> None:
        if name in self._names:
            raise ConfigError(
                f"an adapter {name!r} is loaded", fix="unload it first, or take another name"
            )

    def unload(self, name: str) -> None:
        """See `kvrt.Runtime.unload_adapter`."""
        with self._lock:
            if self._names.pop(name, None) is None:
                raise ConfigError(f"no adapter {name!r} is loaded", fix=f"{self._known()} are")

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each."""
        with self._lock:
            return {name: adapter.nbytes for name, adapter in self._names.items()}

    def named(self, name: str | None) -> Adapter | None:
        """The adapter of a request.

        Raises:
            RequestError: there is none of that name.
        """
        if name is None:
            return None
        with self._lock:
            if name in self._names:
                return self._names[name]
            raise RequestError(
                f"adapter is none that is loaded; {self._known()} are", param="adapter"
            )

    def _known(self) -> str:
        return ", ".join(self._names) or "none"


def fingerprint_with(fingerprint: bytes, adapter: Adapter | None) -> bytes:
    """Of the pages of those who have an adapter: by its content, not by its name."""
    if adapter is None:
        return fingerprint
    return hashlib.sha256(b"adapter" + fingerprint + adapter.digest).digest()
