"""Checks of the optional `GraphCapture`."""

from collections.abc import Callable, Sequence

import torch

from kvrt.spi import AttentionBatch, Capability, Graph, GraphCapture
from kvrt.wrappers.attention import CheckedAttention
from kvrt.wrappers.rules import Facts, broken, whole


class CheckedGraphs:
    """`GraphCapture` whose batches are checked as `PagedAttention.plan` checks them.

    They are also to be those of one step.

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

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> "CheckedGraph":
        self._facts.check_open("graphs.capture")

        def checked(plans: Sequence[object]) -> None:
            if self._layers:
                plans = [*map(self._attention.adopt, batches, plans)]
            record(plans)

        _check_one_step(batches)
        for batch in batches:
            self._attention.check(batch)
            if not _ragged(self._facts):
                _check_no_parents(batch)
        graph = self._inner.capture(batches, checked)
        return CheckedGraph(self._facts, self._attention, graph, batches)


class CheckedGraph:
    """`Graph` that refuses batches other than those it was recorded for."""

    def __init__(
        self,
        facts: Facts,
        attention: CheckedAttention,
        inner: Graph,
        batches: Sequence[AttentionBatch],
    ) -> None:
        self._facts = facts
        self._attention = attention
        self._inner = inner
        self._recorded = [(batch.kv.data_ptr(), batch.layout) for batch in batches]
        self._query_start = batches[0].query_start.clone()
        self._tokens = int(self._query_start[-1])

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        self._facts.check_open("graph.replay")
        if len(batches) != len(self._recorded):
            rule = f"must be as many as were recorded, {len(self._recorded)}"
            raise broken("batches", len(batches), rule)
        _check_one_step(batches)
        for batch, (kv, layout) in zip(batches, self._recorded, strict=True):
            self._attention.check(batch)
            if batch.kv.data_ptr() != kv or batch.layout != layout:
                rule = "must be that of the recorded batch, in the same layout"
                raise broken("kv", batch.kv, rule)
        self._check_tokens(batches[0])
        self._inner.replay(batches)

    def _check_tokens(self, batch: AttentionBatch) -> None:
        if _ragged(self._facts):
            if batch.query_start.numpy()[-1] != self._tokens:
                rule = f"must end with the recorded number of tokens, {self._tokens}"
                raise broken("query_start", batch.query_start.tolist(), rule)
        elif not torch.equal(batch.query_start, self._query_start):
            rule = f"must be as recorded, {self._query_start.tolist()}"
            raise broken("query_start", batch.query_start.tolist(), rule)
        else:
            _check_no_parents(batch)


def _check_one_step(batches: Sequence[AttentionBatch]) -> None:
    """Refuse batches of other sequences than the first one's."""
    if not batches:
        raise broken("batches", "[]", "a step has at least one")
    first = batches[0]
    for number, batch in enumerate(batches[1:], 1):
        for name in ("query_start", "context_len", "parents"):
            own, all_have = getattr(batch, name), getattr(first, name)
            same = own is all_have or (
                own is not None and all_have is not None and torch.equal(own, all_have)
            )
            if not same:
                rule = "must be as in the first batch of the step"
                raise broken(f"batches[{number}].{name}", own, rule)


def _ragged(facts: Facts) -> bool:
    return Capability.RAGGED_GRAPHS in facts.info.capabilities


def _check_no_parents(batch: AttentionBatch) -> None:
    if batch.parents is not None:
        raise broken("parents", "a tensor", "must be None in a recorded step")
