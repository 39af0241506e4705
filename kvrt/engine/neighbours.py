"""What an engine asks of the other tenants of its device, and does for them."""

import itertools
import logging
import time
from collections.abc import Sequence

from kvrt.engine.live import Live
from kvrt.kv.memory import Memory
from kvrt.kv.seq import Seq
from kvrt.sched.batching import Limits, bytes_to_come

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
"""Others give back what they are not due at their next step, or end a request. Who does not in this
time has stopped, or is due all that it holds."""

_GRACE_S = 0.1
"""What ends in this time gives its pages back by itself, and nobody computes anything twice."""

_NAP_S = 0.001

_SEEN = 64
"""Of sequences that wait, so many are counted in what would be of use: they may be thousands."""


class Neighbours:
    """See the module. Does nothing where the device is not shared.

    Args:
        memory: of the engine.
        live: its sequences.
        limits: of one step.
    """

    def __init__(self, memory: Memory, live: Live, limits: Limits) -> None:
        self._memory = memory
        self._live = live
        self._limits = limits
        self._over_since: float | None = None
        self._stuck_since: float | None = None

    def heed(self) -> None:
        """Before a step: keep to what they leave, and tell them what is needed."""
        if self._memory.tenant is None:
            return
        live, table, at_once = self._live, self._memory.cache.table, self._limits.max_batch_tokens
        seqs = itertools.chain(live.running, live.fetching, itertools.islice(live.waiting, _SEEN))
        self._memory.heed(sum(bytes_to_come(table, seq, at_once) for seq in seqs))

    def wait_for_us(self) -> bool:
        """Whether they have waited long enough for what sequences still hold beyond what is left
        to them."""
        cache = self._memory.cache
        if not (cache.squeezed and cache.bytes_over_limit):
            self._over_since = None
            return False
        now = time.monotonic()
        self._over_since = self._over_since or now
        return now > self._over_since + _GRACE_S

    def may_give(self, stuck: Sequence[Seq]) -> bool:
        """Whether sequences are stuck for want of memory that they may yet give back, so that it is
        to be planned again. Waits a moment if so."""
        tenant = self._memory.tenant
        if tenant is None or not stuck or not self._memory.cache.squeezed:
            self._stuck_since = None
            return False
        now = time.monotonic()
        self._stuck_since = self._stuck_since or now
        if now > self._stuck_since + _PATIENCE_S:
            log.warning("no memory came free in %g s: %s", _PATIENCE_S, tenant.others())
            return False
        time.sleep(_NAP_S)
        return True
