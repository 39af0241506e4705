"""What an engine asks of the other tenants of its device, and does for them, and for others of its
machine."""

import itertools
import logging
import time
from collections.abc import Sequence

from kvrt.engine.live import Live
from kvrt.kv.index.reuse import ReuseStats
from kvrt.kv.memory import Memory
from kvrt.kv.seq import Seq
from kvrt.sched.plan import Limits
from kvrt.sched.room import bytes_to_come
from kvrt.sharing.figures import Figures

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
"""Others give back what they are not due at their next step, or end a request. Who does not in this
time has stopped, or is due all that it holds."""

_LAST_LOOKS_S = 1.0
"""Of a machine whose others do not hold what is lacking: something of this process may yet go."""

_GRACE_S = 0.1
"""What ends in this time gives its pages back by itself, and nobody computes anything twice."""

_NAP_S = 0.001

_LONG_NAP_S = 0.01
"""Others of a machine do not say when they give memory back."""

_WARN_EVERY_S = 60.0

_TELLING_S = 0.05
"""People who look see nothing that is shorter."""

_SEEN = 64
"""Of sequences that wait, so many are counted in what would be of use: they may be thousands."""


class Neighbours:
    """See the module. Does nothing where the device is not shared, nor the machine's own memory.

    Args:
        memory: of the engine.
        live: its sequences.
        limits: of one step.
    """

    def __init__(self, memory: Memory, live: Live, limits: Limits) -> None:
        self._memory = memory
        self._live = live
        self._limits = limits
        self._told = 0.0
        self._over_since: float | None = None
        self._stuck_since: float | None = None
        self._next_warning = 0.0

    def heed(self) -> None:
        """Before a step: keep to what they leave, and tell them what is needed."""
        if self._memory.tenant is None:
            self._memory.heed()
            return
        live, table, at_once = self._live, self._memory.cache.table, self._limits.max_batch_tokens
        seqs = itertools.chain(live.running, live.fetching, itertools.islice(live.waiting, _SEEN))
        self._memory.heed(sum(bytes_to_come(table, seq, at_once) for seq in seqs))

    def tell(self, sampled: int, preempted: int, *, at_once: bool = False) -> None:
        """Tell people who look what has been done; not in each step, unless `at_once`.

        Args:
            sampled: tokens, so far.
            preempted: how often a sequence gave its pages to others.
        """
        tenant, now = self._memory.tenant, time.monotonic()
        if tenant is None or (now < self._told + _TELLING_S and not at_once):
            return
        self._told = now
        cache, live = self._memory.cache, self._live
        reuse = ReuseStats() if self._memory.reuse is None else self._memory.reuse.stats
        tenant.tell(
            Figures(
                weights=tenant.held - cache.held_bytes,
                mapped=cache.held_bytes,
                cached=cache.table.idle_bytes,
                running=len(live.running),
                waiting=len(live.waiting) + len(live.fetching),
                tokens=sampled,
                prompt=reuse.prompt_tokens,
                reused=reuse.cached_tokens,
                preempted=preempted,
            )
        )

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
        memory = self._memory
        if not stuck or not memory.cache.squeezed:
            self._stuck_since = None
            return False
        now = time.monotonic()
        self._stuck_since = self._stuck_since or now
        patience, others = _LAST_LOOKS_S, "nobody else of the machine has it"
        if memory.later is None and memory.tenant is not None:
            patience, others = _PATIENCE_S, memory.tenant.others()
        if now > self._stuck_since + patience:
            log.warning("no memory came free in %g s: %s", patience, others)
            return False
        time.sleep(_NAP_S)
        return True

    def wait_for_machine(self) -> None:
        """Nothing can run for want of its memory, which may come any moment."""
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_S
            waiting = len(self._live.waiting)
            log.warning("%d sequences wait for memory that others of the machine have", waiting)
        time.sleep(_LONG_NAP_S)
