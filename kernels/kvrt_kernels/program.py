"""Calls of the native kernels, recorded once and computed again by one.

The threads stay awake from the first operator to the last, instead of being started and stopped
for each: half of a small operator's time.
"""

from collections.abc import Callable

from kvrt.errors import ContractError
from kvrt_kernels._args import need
from kvrt_kernels._load import native
from kvrt_kernels.attention import Plan


class Program:
    """What `record(plan)` calls of this package's operators, in the calling thread.

    Nothing is computed yet. The tensors that the calls name must live as long as the program, so
    each result needs a tensor of its own that it goes to.

    Args:
        plan: of a batch with the number of tokens of every batch to come.
        record: makes the calls.
        threads: how many compute.
    """

    def __init__(self, plan: Plan, record: Callable[[Plan], None], threads: int) -> None:
        self._kv, self._tokens = plan.kv, plan.tokens
        self._threads = threads
        self._native = native().Program()
        self._native.record()
        try:
            record(plan)
        finally:
            self._native.stop()

    def run(self, plan: Plan) -> None:
        """Compute what was recorded, on what the tensors hold now, for another batch.

        Raises:
            ContractError: it is of other pages, or has another number of tokens.
        """
        need(plan.kv == self._kv, "the batch has another kv than the recorded one")
        if plan.tokens != self._tokens:
            raise ContractError(
                f"the batch has {plan.tokens} tokens, the recorded one {self._tokens}"
            )
        self._native.run(*plan.sequences, self._threads)
