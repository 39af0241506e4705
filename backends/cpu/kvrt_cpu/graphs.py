"""Steps recorded once and computed by one native call."""

from collections.abc import Callable, Sequence

from kvrt_kernels import attention
from kvrt_kernels.program import Program

from kvrt.spi import AttentionBatch

from .attention import NativeAttention

MOST_TOKENS = 128
"""Beyond it, computing a token takes so long that calling its operators no longer counts."""


class NativeGraph:
    """`Graph` over a native program."""

    def __init__(self, plans: NativeAttention, program: Program) -> None:
        self._plans = plans
        self._program = program

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        plan = self._plans.plan
        self._program.run([plan(b, lasting=False, number=i) for i, b in enumerate(batches)])


class NativeGraphs:
    """`GraphCapture` over the compiled kernels. Recording takes about as long as one step's calls,
    so each number of tokens gets its own graph and nothing is padded."""

    def __init__(self, plans: NativeAttention, threads: int) -> None:
        self._plans = plans
        self._threads = threads

    def size(self, tokens: int) -> int:
        return tokens if tokens <= MOST_TOKENS else 0

    def capture(
        self,
        batches: Sequence[AttentionBatch],
        record: Callable[[Sequence[attention.Plan]], None],
    ) -> NativeGraph:
        plans = [self._plans.plan(batch, number=i) for i, batch in enumerate(batches)]
        program = Program(plans, record, self._threads)
        return NativeGraph(self._plans, program)
