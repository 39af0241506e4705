"""Finding the compiled module."""

import functools
import importlib
import os
from types import ModuleType
from typing import cast

from kvrt.errors import BackendUnavailable, ConfigError

FIX = "reinstall kvrt with a C++17 compiler present (apt-get install g++)"


@functools.cache
def _load() -> ModuleType | str:
    try:
        module = importlib.import_module("kvrt_kernels._native")
    except ImportError as error:
        return str(error)
    if asked := os.environ.get("KVRT_ISA"):
        _choose(module, asked, f"KVRT_ISA is {asked!r}, which")
    return module


def _choose(module: ModuleType, name: str, what: str) -> None:
    if name not in module.isas():
        raise ConfigError(
            f"{what} does not run on this machine",
            fix=f"choose one of: {', '.join(module.isas())}",
        )
    module.set_isa(name)


def native_available() -> bool:
    """Whether the compiled kernels can be used."""
    return isinstance(_load(), ModuleType)


def native_error() -> str:
    """Why the compiled kernels cannot be used; empty if they can."""
    found = _load()
    return "" if isinstance(found, ModuleType) else found


def native() -> ModuleType:
    """The compiled module.

    Raises:
        BackendUnavailable: it was not built, or does not load.
        ConfigError: KVRT_ISA names an instruction set that this machine does not run.
    """
    found = _load()
    if isinstance(found, ModuleType):
        return found
    raise BackendUnavailable(f"the native CPU kernels do not load: {found}", fix=FIX)


def isa() -> str:
    """The instruction set in use: KVRT_ISA of the environment, else the first of `isas`."""
    return cast(str, native().isa())


def isas() -> tuple[str, ...]:
    """The instruction sets that run on this machine, the fastest first.

    Of x86-64-v4-amx, x86-64-v4-bf16, x86-64-v4-vnni, x86-64-v4, x86-64-v3-vnni, x86-64-v3 and
    x86-64, or of neon-bf16, neon-dotprod and neon. Those named after amx or bf16 round activations
    to bfloat16 before they multiply them with weights of bfloat16; x86-64-v4-amx also queries, and
    the weights of values, where keys and values are bfloat16.
    """
    return tuple(native().isas())


def set_isa(name: str) -> None:
    """Use another instruction set, in the whole process. For tests and comparisons.

    Raises:
        ConfigError: this machine does not run it.
    """
    _choose(native(), name, f"instruction set {name!r}")
