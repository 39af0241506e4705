"""Faults in recording and replaying."""

from collections.abc import Callable

from kvrt.spi import AttentionBatch, Graph
from kvrt.wrappers.wrapper import WrappedGraphs


class ReplaysTheRecordedBatch(WrappedGraphs):
    def capture(self, batch: AttentionBatch, record: Callable[[object], None]) -> Graph:
        graph = self.inner.capture(batch, record)

        class Stale:
            def replay(self, _: AttentionBatch) -> None:
                graph.replay(batch)

        return Stale()


class ComputesWhileRecording(WrappedGraphs):
    def capture(self, batch: AttentionBatch, record: Callable[[object], None]) -> Graph:
        record(self.device.attention.plan(batch))
        return super().capture(batch, record)


class RecordsTooFew(WrappedGraphs):
    def size(self, tokens: int) -> int:
        return max(1, tokens - 1)
