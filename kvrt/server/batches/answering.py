"""Answers lines of batches, by what answers the same requests of clients."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from kvrt.aio.runtime import AsyncRuntime
from kvrt.batches.run import Reply
from kvrt.batches.words import Tokens
from kvrt.outputs import Result
from kvrt.server.asking import ask
from kvrt.server.errors import Refusal, refusal_of
from kvrt.server.openai.chat import ChatCompletions
from kvrt.server.openai.completions import Completions
from kvrt.server.openai.errors import refused
from kvrt.server.openai.responses import Responses
from kvrt.server.tenants.accounts import Accounts, Visit
from kvrt.server.tenants.metering import counted
from kvrt.server.tenants.reserving import reserved
from kvrt.server.words.protocol import Api

if TYPE_CHECKING:
    from kvrt.server.openai.embeddings import Embeddings
    from kvrt.server.served import Served

log = logging.getLogger(__name__)

EMBEDDINGS = "/v1/embeddings"
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", EMBEDDINGS)
"""Routes that lines may ask."""

BEHIND = 16
"""The priority of lines: clients who wait come first, but for lines that have waited for thousands
of steps (`kvrt.sched.policy`)."""


class LineAnswers:
    """What answers lines: a model, or one that makes vectors, or both.

    Args:
        runtime: the model; None: there is none.
        served: how it is called.
        embeddings: what makes vectors.
        accounts: whom lines count for.
        answered: told of the status of each.
    """

    def __init__(
        self,
        runtime: AsyncRuntime | None,
        served: "Served | None",
        embeddings: "Embeddings",
        accounts: Accounts,
        answered: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._runtime = runtime
        self._answered = answered
        self._embeddings = embeddings
        self._accounts = accounts
        self._served = served
        self._apis: Mapping[str, Api] = {}
        if served is not None:
            self._apis = {
                "/v1/chat/completions": ChatCompletions(served),
                "/v1/completions": Completions(served),
                "/v1/responses": Responses(served),
            }

    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        """The answer to one line, be it an error.

        Raises:
            KvrtError: no line can be answered any more.
        """
        reply = await self._reply(url, body, owner)
        self._answered(reply.status)
        return reply

    async def _reply(self, url: str, body: bytes, owner: str) -> Reply:
        try:
            with self._accounts.line(owner, url) as visit:
                if url == EMBEDDINGS:
                    return await self._vectors(body, visit)
                return await self._said(self._apis[url], body, owner, visit)
        except Exception as error:
            if self._runtime is not None and (ended := self._runtime.runtime.ended) is not None:
                raise ended from error
            refusal = refusal_of(error)
            if refusal.code == "internal":
                log.exception("a line for %s failed", url)
            return Reply(refusal.status, msgspec.json.encode(refused(refusal)))

    async def _vectors(self, body: bytes, visit: Visit) -> Reply:
        answer = await counted(visit, self._embeddings, body)
        tokens = Tokens(prompt=answer["usage"]["prompt_tokens"])
        return Reply(200, msgspec.json.encode(answer), tokens)

    async def _said(self, api: Api, body: bytes, owner: str, visit: Visit) -> Reply:
        assert self._runtime is not None, "there is a model where there are its routes"
        assert self._served is not None, "likewise"
        call = api.read(body)
        if call.stream:
            raise Refusal(400, "stream: a line of a batch is answered as a whole", param="stream")
        visit.model = self._served.name_of(call.asks)
        asks = await reserved(self._runtime, call.asks, visit)
        answers = await ask(self._runtime, asks, owner, priority=BEHIND, timeout=None)
        try:
            results = await answers.results()
            visit.status = 200
        finally:
            answers.close()
            told = answers.progress
            visit.took(told.prompt_tokens, told.cached_tokens, told.generated_tokens)
        return Reply(200, msgspec.json.encode(call.whole(results)), _tokens(results))


def _tokens(results: Sequence[Result]) -> Tokens:
    used = [result.usage for result in results]
    return Tokens(
        sum(each.prompt_tokens for each in used),
        sum(each.cached_tokens for each in used),
        sum(each.completion_tokens for each in used),
    )
