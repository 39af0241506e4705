"""Answers from a deployment, whatever becomes of the replica that gives them."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from kvrt.engine.prompts import Prompt
from kvrt.errors import KvrtError
from kvrt.outputs import Delta, Result
from kvrt.sampling import SamplingParams

TRIES = 3
"""Replicas that a request is sent to, at most: one that breaks whoever gets it cannot break all."""


class Answers:
    """Asks the replicas of `serving.application`. Belongs to one event loop.

    A request whose replica dies is asked of another. A stream goes on there: the other is told what
    was said and the seed, and the text that follows is that which would have followed.

    Args:
        handle: of the deployment, as `ray.serve.run` and ``get_app_handle`` give it.
        tries: replicas that a request is sent to, at most.
    """

    def __init__(self, handle: DeploymentHandle, tries: int = TRIES) -> None:
        self._handle = handle
        self._tries = tries

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Result:
        """The whole answer; see `kvrt.AsyncRuntime.generate`.

        Raises:
            KvrtError: the request is bad, or ended with an error; or as many replicas as may try it
                have died.
        """
        lost: RayActorError | None = None
        for _ in range(self._tries):
            response = self._handle.generate.remote(prompt, params, options)
            try:
                result: Result = await response
            except RayActorError as error:
                lost = error
            except RayTaskError as error:
                raise _own(error) from None
            except asyncio.CancelledError:
                response.cancel()  # else the replica goes on
                raise
            else:
                return result
        raise _lost(self._tries, lost)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[Delta]:
        """The pieces of an answer, as they come; see `kvrt.AsyncRuntime.stream`. Leaving it ends
        the request: by ``aclose``, or with the task.

        Raises:
            KvrtError: as `generate`; or the replica has died of a stream that does not go on
                elsewhere: of several completions, of beams, or with log-probabilities.
        """
        params = params or SamplingParams()
        if params.seed is None:  # others shall draw the same
            params = replace(params, seed=secrets.randbits(63))
        goes_on = params.n == params.beam_width == 1 and params.logprobs is None
        said: list[int] = []
        begun = False
        lost: RayActorError | None = None
        for _ in range(self._tries):
            pieces = self._pieces(prompt, params, options | ({"said": said} if said else {}))
            try:
                async for delta in pieces:
                    if delta.again:
                        continue
                    begun = True
                    said += delta.token_ids
                    yield delta
                    if delta.finish_reason is not None and goes_on:
                        return
            except RayActorError as error:
                lost = error
                if begun and not goes_on:
                    break
            else:
                return
            finally:
                await pieces.aclose()
        raise _lost(self._tries, lost)

    async def _pieces(self, prompt: Prompt, params: SamplingParams, options: dict[str, Any]) -> Any:
        """Those of one replica."""
        response = self._handle.options(stream=True).stream.remote(prompt, params, options)
        try:
            async for delta in response:
                yield delta
        except RayTaskError as error:
            raise _own(error) from None
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise


def _own(error: RayTaskError) -> BaseException:
    """What the replica has raised."""
    return error.cause if isinstance(error.cause, KvrtError) else error


def _lost(tries: int, error: RayActorError | None) -> KvrtError:
    reason = str(error).partition("\n")[0]
    return KvrtError(
        f"the replica that was asked has died, and no other could answer ({tries} tries): {reason}",
        fix="see in Ray's logs what ended the replicas, and ask again",
    )
