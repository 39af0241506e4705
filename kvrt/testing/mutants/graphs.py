"""Faults in recording and replaying."""

from collections.abc import Callable, Sequence

from kvrt.spi import AttentionBatch, Graph
from kvrt.wrappers.wrapper import WrappedGraphs

Batches = Sequence[AttentionBatch]
Record = Callable[[Sequence[object]], None]


class ReplaysTheRecordedBatch(WrappedGraphs):
    def capture(self, batches: Batches, record: Record) -> Graph:
        graph = self.inner.capture(batches, record)

        class Stale:
            def replay(self, _: Batches) -> None:
                graph.replay(batches)

        return Stale()


class TakesAllForTheFirst(WrappedGraphs):
    """Gives every call of a recorded step the first of its batches."""

    def capture(self, batches: Batches, record: Record) -> Graph:
        graph = self.inner.capture(batches[:1], lambda plans: record([*plans] * len(batches)))

        class First:
            def replay(self, batches: Batches) -> None:
                graph.replay(batches[:1])

        return First()


class ComputesWhileRecording(WrappedGraphs):
    def capture(self, batches: Batches, record: Record) -> Graph:
        record([self.device.attention.plan(batch) for batch in batches])
        return super().capture(batches, record)


class RecordsTooFew(WrappedGraphs):
    def size(self, tokens: int) -> int:
        return max(1, tokens - 1)
