"""Asks the model, unless an answer that is kept will do."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kvrt.outputs import Result
from kvrt.server.asking import Answers, Ask, ask
from kvrt.server.kept.exact import HEADER, SIMILAR, Told
from kvrt.server.kept.source import Source
from kvrt.server.tenants.accounts import Visit
from kvrt.server.tenants.reserving import reserved

if TYPE_CHECKING:
    from kvrt.server.service import Service

NEARNESS = "x-kvrt-similarity"
"""Of an answer to another question: the cosine of the two."""

Keep = Callable[[Sequence[Result]], None]


async def asked(
    service: "Service",
    asks: Sequence[Ask],
    source: Source,
    visit: Visit,
    wanted: Sequence[str],
    headers: dict[str, str],
) -> Answers:
    """The answers.

    Args:
        source: who asks, and where.
        wanted: what the request says of answers that are kept.
        headers: of the answer; they say where it comes from.

    Raises:
        Refusal: a quota is used up.
        KvrtError: see `AsyncRuntime.stream`.
    """
    if any(each.said is not None for each in asks):
        return await ask(
            service.runtime, await reserved(service.runtime, asks, visit), source.tenant
        )
    keeps: list[Keep] = []
    found = _the_same(service, asks, source, wanted, keeps)
    how = {HEADER: "hit"}
    if found is None and wanted and wanted[-1].lower() == SIMILAR:
        found, nearness = await _similar(service, asks, source, keeps)
        how = {HEADER: SIMILAR, NEARNESS: f"{nearness:.6f}"}
    if found is not None:
        visit.kept = True
        headers |= how
        return Answers([Told(result) for result in found])
    counted = await reserved(service.runtime, asks, visit)
    if not keeps:
        return await ask(service.runtime, counted, source.tenant)
    headers[HEADER] = "miss"

    def keep(results: Sequence[Result]) -> None:
        for each in keeps:
            each(results)

    return await ask(service.runtime, counted, source.tenant, keep)


def _the_same(
    service: "Service",
    asks: Sequence[Ask],
    source: Source,
    wanted: Sequence[str],
    keeps: list[Keep],
) -> Sequence[Result] | None:
    """An answer to the very same; `keeps` what keeps another."""
    kept = service.kept
    key = None if kept is None else kept.key(asks, source.tenant, wanted)
    if kept is None or key is None:
        return None
    keeps.append(partial(kept.keep, key, source))
    return kept.find(key)


async def _similar(
    service: "Service", asks: Sequence[Ask], source: Source, keeps: list[Keep]
) -> tuple[Sequence[Result] | None, float]:
    """An answer to nearly the same, likewise, and how near that is."""
    similar = service.desk.similar
    if similar is None:
        return None, 0.0
    question = similar.question(asks, service.served.identity, source.tenant)
    vector = None if question is None else await similar.vector(question)
    if question is None or vector is None:
        return None, 0.0
    keeps.append(partial(similar.keep, question, vector, source))
    return similar.find(question, vector) or (None, 0.0)
