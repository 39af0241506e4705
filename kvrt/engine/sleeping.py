"""What an idle model gives back, and takes again when it is asked."""

import logging
import time

from kvrt.engine.engine import Engine
from kvrt.model.weights.resident import Resident

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""Other tenants of a device have so long to give back what weights need."""


class Sleeper:
    """Puts an engine to sleep, and wakes it. On the engine's thread, between two steps.

    Args:
        engine: see there.
        weights: of its model.
    """

    def __init__(self, engine: Engine, weights: Resident) -> None:
        self._engine = engine
        self._weights = weights
        self.level = 0
        """Of its sleep; 0: it is awake."""

    def sleep(self, level: int) -> None:
        """Give KV memory back; from level 2 on, the weights' as well. Deeper than it sleeps, or as
        deep: what it has already given back stays away.

        Raises:
            ConfigError: the device's weights cannot leave it; nothing was done.
        """
        drops = level >= 2 > self.level
        if drops:
            self._weights.check()
        if not self.level:
            self._engine.park()
        if drops:
            self._weights.drop()
        if (tenant := self._engine.memory.tenant) is not None:
            if drops:
                tenant.give(self._weights.memory.numel())
            tenant.wants(tenant.held)
        self.level = max(level, self.level)

    def wake(self) -> None:
        """Have all back, and go on. Nothing happens if it is awake.

        Raises:
            CapacityError: there is no memory for the weights; it sleeps on.
            ModelError: what they are read from has gone, or changed; the same.
        """
        begun, memory = time.perf_counter(), self._engine.memory
        if self.level >= 2:
            nbytes = self._weights.memory.numel()
            if memory.tenant is not None:
                memory.tenant.take_soon(nbytes, LEASE_S)
            try:
                self._weights.bring_back()
            except BaseException:
                self._weights.drop()
                if memory.tenant is not None:
                    memory.tenant.give(nbytes)
                raise
        if self.level:
            self.level = 0
            self._engine.go_on()
            log.info("awake after %.3f s", time.perf_counter() - begun)
