"""Steps recorded once and computed by one native call."""

from collections.abc import Callable

from kvrt_kernels import attention
from kvrt_kernels.program import Program

from kvrt.spi import AttentionBatch

from .attention import NativeAttention

MOST_TOKENS = 32
"""Beyond it, computing a token takes so long that calling its operators no longer counts."""


class NativeGraph:
    """`Graph` over a native program."""

    def __init__(self, plans: NativeAttention, program: Program) -> None:
        self._plans = plans
        self._program = program

    def replay(self, batch: AttentionBatch) -> None:
        self._program.run(self._plans.plan(batch, lasting=False))


class NativeGraphs:
    """`GraphCapture` over the compiled kernels. Recording takes about as long as one step's calls,
    so each number of tokens gets its own graph and nothing is padded."""

    def __init__(self, plans: NativeAttention, threads: int) -> None:
        self._plans = plans
        self._threads = threads

    def size(self, tokens: int) -> int:
        return tokens if tokens <= MOST_TOKENS else 0

    def capture(
        self, batch: AttentionBatch, record: Callable[[attention.Plan], None]
    ) -> NativeGraph:
        program = Program(self._plans.plan(batch), record, self._threads)
        return NativeGraph(self._plans, program)
