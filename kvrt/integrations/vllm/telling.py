"""What vLLM does, for people who look at the tenants of a share (`kvrt top`)."""

import time
from collections.abc import Callable
from typing import Any

from kvrt.integrations.vllm.balloon import BalloonFigures
from kvrt.sharing.figures import Figures
from kvrt.sharing.tenant import Tenant

TELLING_S = 0.2
"""Not more often than that."""


class Telling:
    """Counts what is scheduled. Belongs to the scheduler's thread.

    Args:
        tenant: of the share.
        clock: seconds.
    """

    def __init__(self, tenant: Tenant, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenant, self._clock, self._told = tenant, clock, -TELLING_S
        self._live: dict[str, int] = {}
        """Requests that have not ended, and how many tokens of their answers are counted."""
        self._tokens = self._prompt = self._reused = self._preempted = 0

    def came(self, request: Any) -> None:
        self._live[request.request_id] = 0

    def ended(self, request: Any) -> None:
        counted = self._live.pop(request.request_id, 0)
        self._tokens += request.num_output_tokens - counted

    def scheduled(self, output: Any, figures: Callable[[], BalloonFigures]) -> None:
        """A step is what vLLM's scheduler has put out."""
        for new in output.scheduled_new_reqs:
            self._prompt += len(new.prompt_token_ids or ())
            self._reused += new.num_computed_tokens
        again = output.scheduled_cached_reqs
        for name, count in zip(again.req_ids, again.num_output_tokens, strict=True):
            self._tokens += count - self._live.get(name, count)
            self._live[name] = count
        self._preempted += len(output.preempted_req_ids or ())
        running = len(output.num_scheduled_tokens)
        now = self._clock()
        if now < self._told + TELLING_S and running:
            return
        self._told, stands = now, figures()
        self._tenant.tell(
            Figures(
                mapped=stands.held,
                cached=stands.cached,
                running=running,
                waiting=max(0, len(self._live) - running),
                tokens=self._tokens,
                prompt=self._prompt,
                reused=self._reused,
                preempted=self._preempted,
            )
        )
