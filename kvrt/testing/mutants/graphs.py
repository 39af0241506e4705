"""Faults in recording and replaying."""

from collections.abc import Callable, Sequence

from kvrt.spi import AttentionBatch, Graph
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedGraphs

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


MUTANTS = {
    "replays_the_recorded_batch": Mutant("graphs", graphs=ReplaysTheRecordedBatch),
    "computes_while_recording": Mutant("graphs", graphs=ComputesWhileRecording),
    "takes_all_for_the_first": Mutant(
        "graphs::test_a_step_may_have_several_batches", graphs=TakesAllForTheFirst
    ),
    "records_too_few": Mutant("graphs", graphs=RecordsTooFew),
}
