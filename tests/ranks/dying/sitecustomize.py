"""Python imports this first in each rank that ``tests/ranks/test_dying.py`` starts. One of them
kills itself at a point that its environment names:

    DIE_AT=1:STEP:2        rank 1, as it is told the second step
    DIE_AT=1:call:7        rank 1, in its seventh call of a collective
"""

import os
import signal
import sys

if "kvrt.ranks.rank" in sys.orig_argv and "DIE_AT" in os.environ:
    from kvrt_kernels.collective import TorchCollective

    from kvrt.ranks.joining import Hello
    from kvrt.ranks.link import Kind, Link
    from kvrt.spi import Meeting

    rank, point, left = os.environ["DIE_AT"].split(":")
    count = int(left)
    armed = point == Kind.HELLO.name

    def passed(name: str) -> None:
        """It has come to a point."""
        global count
        if armed and name == point:
            count -= 1
            if not count:
                os.kill(os.getpid(), signal.SIGKILL)

    receive, read, made = Link.receive, Hello.read.__func__, TorchCollective.__init__  # type: ignore[attr-defined]

    def receives(self: Link) -> tuple[Kind, bytes]:
        kind, body = receive(self)
        passed(kind.name)
        return kind, body

    def reads(cls: type[Hello], body: bytes) -> Hello:
        global armed
        hello: Hello = read(cls, body)
        armed = hello.shard.rank == int(rank)
        return hello

    class Calls(int):
        """A count, of which each is a point."""

        def __add__(self, other: int) -> "Calls":
            passed("call")
            return Calls(int(self) + other)

    def makes(self: TorchCollective, group: object, meeting: Meeting) -> None:
        made(self, group, meeting)
        self.calls = Calls(0)

    Link.receive = receives  # type: ignore[method-assign]
    Hello.read = classmethod(reads)  # type: ignore[assignment,method-assign]
    TorchCollective.__init__ = makes  # type: ignore[method-assign]
