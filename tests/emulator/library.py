"""Builds an emulated driver, loads it in place of the vendor's, and steers it."""

import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
CORE = ("control.c", "memory.c", "streams.c")
FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread")


@dataclass(frozen=True, slots=True)
class Vendor:
    """A driver to stand in for: the name it is loaded by, and its face in C."""

    soname: str
    face: tuple[str, ...]


VENDORS = {
    "cuda": Vendor("libcuda.so.1", ("cuda.c", "cuda_errors.c")),
    "rocm": Vendor("libamdhip64.so", ("hip.c",)),
}

COUNTED = (
    "spans", "chunks", "handles", "mappings", "pinned", "streams", "events", "contexts", "queued",
)  # fmt: skip
"""What must be given back."""


def unsupported(name: str) -> str:
    """Why the emulated driver could not be used here, in words; empty if it could."""
    binding = importlib.import_module(f"kvrt_{name}.driver").VENDOR.binding
    try:
        importlib.metadata.version(binding)
    except importlib.metadata.PackageNotFoundError:
        return f"{binding} is not installed"
    return ""


def build(name: str) -> Path:
    """The library, compiled by the system's C compiler at the first call and then kept."""
    vendor = VENDORS[name]
    sources = [NATIVE / source for source in (*CORE, *vendor.face)]
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"the emulated drivers need a C compiler, and there is no {compiler}")
    state = hashlib.sha256(repr((compiler, FLAGS, vendor)).encode())
    for path in sorted(NATIVE.iterdir()):
        state.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"kvrt-emulator-{os.getuid()}-{state.hexdigest()[:16]}"
    library = folder / vendor.soname
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        draft = folder / f"{vendor.soname}.{os.getpid()}"
        links = ("-Wl,-Bsymbolic", f"-Wl,-soname,{vendor.soname}")
        subprocess.run([compiler, *FLAGS, *links, *sources, "-o", draft], check=True)
        draft.rename(library)
    return library


class Emulator:
    """An emulated driver in this process.

    Loaded before anything asks for the vendor's library, it is what they get.

    Args:
        name: ``cuda`` or ``rocm``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._library = library = ctypes.CDLL(str(build(name)), mode=ctypes.RTLD_GLOBAL)
        library.emu_set.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
        library.emu_count.argtypes = [ctypes.c_char_p]
        library.emu_count.restype = ctypes.c_int64
        library.emu_calls.argtypes = [ctypes.c_char_p]
        library.emu_calls.restype = ctypes.c_uint64
        library.emu_fail.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
        library.emu_lose.argtypes = [ctypes.c_int]
        library.emu_trace.restype = ctypes.c_char_p

    def reset(self) -> None:
        """Everything as it was when the library was loaded."""
        self._library.emu_reset()

    def set(self, **settings: int) -> None:
        """Change settings: see ``struct settings`` in ``native/core.h``."""
        for name, value in settings.items():
            if self._library.emu_set(name.encode(), value):
                raise KeyError(name)

    def count(self, what: str) -> int:
        """How many there are: one of `COUNTED`, or ``violations``."""
        number = int(self._library.emu_count(what.encode()))
        if number < 0:
            raise KeyError(what)
        return number

    def left(self) -> dict[str, int]:
        """What was not given back."""
        return {what: number for what in COUNTED if (number := self.count(what))}

    def calls(self, function: str = "") -> int:
        """How often a function, or any, was called since the last reset."""
        return int(self._library.emu_calls(function.encode()))

    def fail(self, nth: int, status: int, function: str = "") -> None:
        """Let the n-th call from now (from 1) of a function, or of any, fail and do nothing."""
        self._library.emu_fail(function.encode(), nth, status)

    def lose(self, status: int) -> None:
        """Let every call from now on fail, as if the device were gone. 0: it is back."""
        self._library.emu_lose(status)

    def trace(self) -> list[str]:
        """One line for each call since the last reset."""
        return str(self._library.emu_trace().decode()).splitlines()


_loaded: Emulator | None = None


def load(name: str) -> Emulator:
    """Load an emulated driver. A process can have one."""
    global _loaded
    if _loaded is not None and _loaded.name != name:
        raise RuntimeError(f"the emulated {_loaded.name} driver is loaded already")
    _loaded = _loaded or Emulator(name)
    return _loaded


def loaded() -> Emulator | None:
    """The emulated driver of this process, if it has one."""
    return _loaded
