"""How many replicas there are to be, by how many requests wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvrt_operator.spec import Spec


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was decided, and is known again by the status.

    Args:
        replicas: that there are to be.
        quiet_since: when requests were last seen to wait, or a replica went; None: they wait.
    """

    replicas: int
    quiet_since: float | None = None


def scale(
    spec: Spec, status: Mapping[str, Any], queued: Mapping[str, int], ready: int, now: float
) -> Scaled:
    """As many as are asked for; or by the queue, from what was decided last.

    - More, as soon as more wait than `queued` a replica: as many as the queue would fill, but at
      most twice as many as there are. While a replica that was added is not ready, no more are
      added for the queue that it is to take.
    - One less, when nobody had to wait for `quiet_s`, and then again after as long.
    - What a replica that does not answer has in its queue is not known: then none goes.
    """
    bounds = spec.scaling
    if bounds is None:
        return Scaled(spec.replicas)
    before = status.get("scale", {})
    current = min(bounds.most, max(bounds.least, before.get("replicas", bounds.least)))
    waiting = sum(queued.values())
    since = before.get("quietSince")
    if waiting > 0 or len(queued) < ready or ready < current:
        more = waiting > bounds.queued * current and ready >= current
        if more:
            wanted = min(-(-waiting // bounds.queued), 2 * current)
            current = min(bounds.most, max(current, wanted))
        return Scaled(current)
    if since is None or since > now:
        return Scaled(current, now)
    if now - since >= bounds.quiet_s and current > bounds.least:
        return Scaled(current - 1, now)
    return Scaled(current, since)
