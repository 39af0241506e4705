"""Checks of the optional `GraphCapture`."""

from collections.abc import Callable

import torch

from kvrt.spi import AttentionBatch, Capability, Graph, GraphCapture
from kvrt.wrappers.attention import CheckedAttention
from kvrt.wrappers.rules import Facts, broken, whole


class CheckedGraphs:
    """`GraphCapture` whose batches are checked as `PagedAttention.plan` checks them.

    Args:
        layers: the calls that are recorded are checked as well.
    """

    def __init__(
        self, facts: Facts, attention: CheckedAttention, inner: GraphCapture, layers: bool
    ) -> None:
        self._facts = facts
        self._attention = attention
        self._inner = inner
        self._layers = layers

    def size(self, tokens: int) -> int:
        self._facts.check_open("graphs.size")
        size = self._inner.size(tokens)
        if not whole(size) or (size != 0 and size < tokens):
            raise self._facts.wrong(f"graphs.size({tokens})", repr(size), "is neither 0 nor enough")
        return size

    def capture(self, batch: AttentionBatch, record: Callable[[object], None]) -> "CheckedGraph":
        self._facts.check_open("graphs.capture")

        def checked(plan: object) -> None:
            record(self._attention.adopt(batch, plan) if self._layers else plan)

        self._attention.check(batch)
        if not _ragged(self._facts):
            _check_no_parents(batch)
        graph = self._inner.capture(batch, checked)
        return CheckedGraph(self._facts, self._attention, graph, batch)


class CheckedGraph:
    """`Graph` that refuses batches other than those it was recorded for."""

    def __init__(
        self, facts: Facts, attention: CheckedAttention, inner: Graph, batch: AttentionBatch
    ) -> None:
        self._facts = facts
        self._attention = attention
        self._inner = inner
        self._kv, self._layout = batch.kv.data_ptr(), batch.layout
        self._query_start = batch.query_start.clone()
        self._tokens = int(self._query_start[-1])

    def replay(self, batch: AttentionBatch) -> None:
        self._facts.check_open("graph.replay")
        self._attention.check(batch)
        if batch.kv.data_ptr() != self._kv or batch.layout != self._layout:
            raise broken("kv", batch.kv, "must be that of the recorded batch, in the same layout")
        if _ragged(self._facts):
            if batch.query_start.numpy()[-1] != self._tokens:
                rule = f"must end with the recorded number of tokens, {self._tokens}"
                raise broken("query_start", batch.query_start.tolist(), rule)
        elif not torch.equal(batch.query_start, self._query_start):
            rule = f"must be as recorded, {self._query_start.tolist()}"
            raise broken("query_start", batch.query_start.tolist(), rule)
        else:
            _check_no_parents(batch)
        self._inner.replay(batch)


def _ragged(facts: Facts) -> bool:
    return Capability.RAGGED_GRAPHS in facts.info.capabilities


def _check_no_parents(batch: AttentionBatch) -> None:
    if batch.parents is not None:
        raise broken("parents", "a tensor", "must be None in a recorded step")
