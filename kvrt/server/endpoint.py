"""A route that asks the model: from the first byte of a request to the last of its answer."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send

from kvrt.server.access import gate
from kvrt.server.asking import Answers
from kvrt.server.entry import Entry, entry_of
from kvrt.server.errors import Refusal, refusal_of
from kvrt.server.kept.asking import asked
from kvrt.server.kept.exact import HEADER
from kvrt.server.kept.source import Source
from kvrt.server.moving import Move, event_of, go_on, taken_apart, ticket_of, told_of
from kvrt.server.prefilling import is_prefill, prompts_alone, told_when_sent
from kvrt.server.service import Service
from kvrt.server.tenants.accounts import Visit
from kvrt.server.wire.http import EVENTS, Reply, headers_of, read_body, until_gone
from kvrt.server.words.protocol import Api, Call

log = logging.getLogger(__name__)

DEADLINE = "x-kvrt-deadline"
"""A request's: seconds after which its answer is of no use."""

SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)

LEFT = 499
"""What the log and the metrics have for a client that left, as nginx's."""


class Endpoint:
    """One route, as an ASGI application.

    Args:
        service: what is asked.
        route: its path, for the log and the metrics.
        api: its protocol.
        kind: of its streams.
    """

    def __init__(self, service: Service, route: str, api: Api, kind: bytes = EVENTS) -> None:
        self._service = service
        self._route = route
        self._api = api
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = entry_of(scope)
        entry.model = self._service.served.names[0]
        reply = Reply(send, {"x-request-id": entry.id})
        try:
            entry.status = await self._reply(scope, receive, reply, entry)
        except ConnectionError:
            entry.status = LEFT
        self._service.metrics.answered(self._route, entry.status)
        owner, seconds = entry.owner, entry.seconds
        name = owner.name if owner else ""
        fields = {
            "id": entry.id, "route": self._route, "key": name,
            "workspace": owner.tenant if owner else "", "model": entry.model,
            "status": entry.status, "seconds": seconds,
        }  # fmt: skip
        log.info(
            "%s %s by %s: %d in %.3f s",
            entry.id, self._route, name or "anybody", entry.status, seconds,
            extra={"fields": fields},
        )  # fmt: skip

    async def _reply(self, scope: Scope, receive: Receive, reply: Reply, entry: Entry) -> int:
        assert entry.owner is not None, "nobody else gets here"
        accounts = self._service.accounts
        try:
            body = await read_body(scope, receive, self._service.served.max_body)
            body, begun = taken_apart(scope, body)
            call = self._api.read(body)
            if begun is not None:
                go_on(call, begun)
            if is_prefill(scope):
                call.asks = prompts_alone(call.asks)
            with accounts.visit(entry.owner, self._route, entry.id) as visit:
                visit.model = self._service.served.name_of(call.asks)
                reply.headers.update(visit.headers)
                try:
                    await self._attend(call, scope, receive, reply, entry, visit)
                    visit.status = reply.status
                except Exception as error:
                    left = isinstance(error, ConnectionError)
                    visit.status = LEFT if left else refusal_of(error).status
                    raise
                finally:
                    if (told := entry.progress) is not None:
                        visit.took(told.prompt_tokens, told.cached_tokens, told.generated_tokens)
            return reply.status
        except ConnectionError:
            raise
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == "internal":
                log.exception("a request to %s failed", self._route)
            if not reply.status:
                await reply.json(self._api.refused(refusal), refusal.status, refusal.headers)
            else:
                await reply.events([self._api.broken(refusal)], more=False)
            return refusal.status

    async def _attend(
        self,
        call: Call,
        scope: Scope,
        receive: Receive,
        reply: Reply,
        entry: Entry,
        visit: Visit,
    ) -> None:
        """Answer as long as the client is there."""
        with self._service.gate.enter(sum(each.params.n for each in call.asks)):
            seconds = _seconds_left(scope, entry, self._service.config.deadline)
            work = self._answer(call, scope, reply, entry, visit)
            await _attended(work, receive, self._service.cut, entry, seconds)

    async def _answer(
        self, call: Call, scope: Scope, reply: Reply, entry: Entry, visit: Visit
    ) -> None:
        assert entry.owner is not None, "nobody else gets here"
        cached = headers_of(scope, HEADER.encode())
        source = Source(entry.owner.tenant, entry.owner.name, self._route)
        answers = entry.answers = await asked(
            self._service, call.asks, source, visit, cached, reply.headers
        )
        try:
            if is_prefill(scope):
                results = await answers.results()
                await reply.json(await told_when_sent(self._service.runtime, results))
                return
            if not call.stream:
                await reply.json(call.whole(await answers.results()))
                return
            await reply.begin_stream(self._kind)
            moves, ticket = self._service.desk.moves, ticket_of(scope, call)
            with moves.watched(entry.owner.tenant, ticket, Move(answers.close)) as move:
                await self._stream(call, reply, answers, move)
        finally:
            answers.close()

    async def _stream(self, call: Call, reply: Reply, answers: Answers, move: Move) -> None:
        """All pieces; or, if it moves meanwhile, those until then, and what the others need."""
        resumes, ended = any(each.said is not None for each in call.asks), False
        opening = [*call.opening(answers.prompts)]
        await reply.events([] if resumes else opening)
        async with contextlib.aclosing(answers.pieces()) as pieces, reply.kept_alive():
            async for number, delta in pieces:
                move.said += delta.token_ids
                ended = delta.finish_reason is not None
                events = [*call.piece(number, delta)]
                await reply.events([] if delta.again else events)
        if move.asked and not ended:
            await reply.events([event_of(told_of(call, answers.seed, move.said))], more=False)
            return
        await reply.events(call.closing(await answers.results()), more=False)


def _seconds_left(scope: Scope, entry: Entry, most: float | None) -> float | None:
    """Until the deadline of a request, by what it says and what the server allows; None: it has
    none.

    Raises:
        Refusal: it says something else, or the deadline has passed.
    """
    wanted = [] if most is None else [most]
    for text in headers_of(scope, DEADLINE.encode()):
        if not SECONDS.fullmatch(text) or not float(text):
            raise Refusal(400, f"{DEADLINE} is a number of seconds above 0", param=DEADLINE)
        wanted.append(float(text))
    if not wanted:
        return None
    left = min(wanted) - entry.seconds
    if left <= 0:
        raise _late()
    return left


def _late() -> Refusal:
    return Refusal(
        HTTPStatus.GATEWAY_TIMEOUT, "the answer did not end before its deadline", code="deadline"
    )


async def _attended(
    work: Coroutine[Any, Any, None],
    receive: Receive,
    cut: "asyncio.Future[None]",
    entry: Entry,
    seconds: float | None,
) -> None:
    """Do it, as long as the client is there, the server goes on, nobody ends it, and for so many
    seconds.

    Raises:
        ConnectionError: the client has left.
        Refusal: the server ends, somebody has ended the request, or it is late.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(until_gone(receive))
    stopped = entry.stopping = asyncio.get_running_loop().create_future()
    try:
        ends = {task, gone, cut, stopped}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        elif gone.done():
            raise ConnectionError("the client left")
        elif stopped.done():
            raise Refusal(HTTPStatus.CONFLICT, "the request was ended by its owner", code="ended")
        elif cut.done():
            raise gate.shutting_down()
        else:
            raise _late()
    finally:
        entry.stopping = None
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # looked at, so that nobody is told of it
