"""Which replica Ray Serve asks: the one that is expected to answer first, as `kvrt route` would.

Every handle of Ray has a router of its own, which remembers where it has sent which prompts, for
ten minutes: these pages are likely cached there. It hears nothing of other handles, nor of pages
that have been given up; where it is wrong, a prompt is computed, and the answer is the same.
"""

import json
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from kvrt.integrations.choosing import Candidate, choose
from kvrt.integrations.prefixes import EVERYBODY, Key, Prefixes, keys_of

PAGE = 16
"""Tokens of a page: what is remembered."""

TOKEN_BYTES = 4
"""Of a text that nobody has made into tokens yet, so many bytes count as one."""


class PrefixRouter(RequestRouter):
    """See `ray.serve.request_router.RequestRouter`, which calls it on one event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked: dict[ReplicaID, Prefixes] = {}
        self._turns: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The one to ask, and behind it the others, for when it has as many requests as it may."""
        if pending_request is None:
            return [candidate_replicas]
        keys, tokens = pages_of(pending_request.args, pending_request.kwargs)
        now = monotonic()
        running = self.replica_queue_len_cache
        candidates = [
            Candidate(
                cached=PAGE * self._of(replica.replica_id).matched(keys, now),
                waiting=0,
                running=running.get(replica.replica_id) or 0,
                pace=None,
                turns=self._turns[replica.replica_id],
            )
            for replica in candidate_replicas
        ]
        best = candidate_replicas[choose(candidates, tokens)]
        return [[best], [replica for replica in candidate_replicas if replica is not best]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Remember where it went; and nothing any more of replicas that are gone."""
        for gone in self._asked.keys() - self.curr_replicas.keys():
            del self._asked[gone], self._turns[gone]
        keys, _ = pages_of(pending_request.args, pending_request.kwargs)
        self._of(replica_id).asked(keys, monotonic())
        self._turns[replica_id] += 1

    def _of(self, replica: ReplicaID) -> Prefixes:
        return self._asked.setdefault(replica, Prefixes())


def pages_of(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Key], int]:
    """The whole pages of the prompt that a request of `serving.Replica` has, and its tokens, about.

    Args:
        args, kwargs: of the request. Those of another have no pages.
    """
    prompt = args[0] if args else kwargs.get("prompt")
    options = args[2] if len(args) > 2 else {}
    if prompt is None or options.get("private"):
        return [], 0
    salt = options.get("cache_salt", "")
    whose = EVERYBODY if not salt else salt.encode()
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
        if all(type(token) is int for token in prompt):
            return keys_of(prompt, PAGE, whose), len(prompt)
        prompt = json.dumps(prompt, default=repr)  # messages
    text = (prompt if isinstance(prompt, str) else repr(prompt)).encode()
    return keys_of([*text], PAGE * TOKEN_BYTES, whose), len(text) // TOKEN_BYTES
