"""What memory is in the addresses that a cache took, whatever else the process gets or frees."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from kvrt.spi import Device, Span
from kvrt.wrappers.wrapper import Wrapper

Params = ParamSpec("Params")
Answer = TypeVar("Answer")


class Spans(Wrapper):
    """A device that notes which addresses pages have."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.spans: list[Span] = []

    def around(
        self, name: str, call: Callable[Params, Answer], *args: Params.args, **kwargs: Params.kwargs
    ) -> Answer:
        answer = super().around(name, call, *args, **kwargs)
        if isinstance(answer, Span):
            self.spans.append(answer)
        return answer

    def resident(self) -> list[int]:
        """Bytes that the system has given to each span."""
        found: dict[int, int] = {}  # some stand there twice, if they change meanwhile
        start = 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            word, *rest = line.split()
            if not word.endswith(":"):
                start = int(word.partition("-")[0], 16)
            elif word == "Rss:":
                found[start] = int(rest[0]) << 10
        return [
            sum(size for at, size in found.items() if s.base <= at < s.base + s.nbytes)
            for s in self.spans
        ]
