"""Calls of the native kernels, recorded once and computed again by one.

The threads stay awake from the first operator to the last, instead of being started and stopped
for each: half of a small operator's time.
"""

from collections.abc import Callable, Sequence

from kvrt.errors import ContractError
from kvrt_kernels._load import native
from kvrt_kernels.attention import Plan


class Program:
    """What `record(plans)` calls of this package's operators, in the calling thread.

    Nothing is computed yet. The tensors that the calls name must live as long as the program, so
    each result needs a tensor of its own that it goes to.

    Args:
        plans: of batches of as many tokens as all batches to come have, by their numbers.
        record: makes the calls.
        threads: how many compute.
    """

    def __init__(
        self, plans: Sequence[Plan], record: Callable[[Sequence[Plan]], None], threads: int
    ) -> None:
        self._recorded = [(plan.kv, plan.tokens) for plan in plans]
        self._threads = threads
        self._native = native().Program()
        self._native.record()
        try:
            record(plans)
        finally:
            self._native.stop()

    def run(self, plans: Sequence[Plan]) -> None:
        """Compute what was recorded, on what the tensors hold now, for other batches.

        Raises:
            ContractError: they are of other pages, or have another number of tokens.
        """
        if len(plans) != len(self._recorded):
            raise ContractError(f"{len(plans)} batches, and {len(self._recorded)} were recorded")
        for plan, (kv, tokens) in zip(plans, self._recorded, strict=True):
            if plan.kv != kv:
                raise ContractError("the batch has another kv than the recorded one")
            if plan.tokens != tokens:
                raise ContractError(
                    f"the batch has {plan.tokens} tokens, the recorded one {tokens}"
                )
        self._native.run([plan.sequences for plan in plans], self._threads)
