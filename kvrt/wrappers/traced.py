"""A device that reports every call: for logs, for counting, and for bug reports that replay."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvrt.spi import AttentionBatch, Device
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a device method.

    Args:
        name: the method, e.g. ``memory.map``.
        arguments: a short description of each argument; a tensor's contents are not shown.
        seconds: how long the method took, by the host's clock.
        error: the name of the exception it raised; empty if it returned.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    error: str = ""


class Traced(Wrapper):
    """Tells `sink` about each call when it has returned or raised.

    Args:
        inner: the device that does the work.
        sink: called with each `Call`, in the calling thread; a list's ``append`` will do.
    """

    def __init__(self, inner: Device, sink: Callable[[Call], object]) -> None:
        super().__init__(inner)
        self._sink = sink

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        arguments = tuple(map(_described, (*args, *kwargs.values())))
        error = ""
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self._sink(Call(name, arguments, time.perf_counter() - start, error))


def _described(argument: object) -> str:
    if isinstance(argument, Tensor):
        return f"{str(argument.dtype).removeprefix('torch.')}{list(argument.shape)}"
    if isinstance(argument, AttentionBatch):
        tokens = int(argument.query_start[-1])
        return f"AttentionBatch({len(argument.context_len)} sequences, {tokens} tokens)"
    text = repr(argument)
    return text if len(text) <= 80 else text[:77] + "..."
