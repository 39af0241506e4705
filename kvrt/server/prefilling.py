"""Prompts that are computed here for answers that are given elsewhere.

router --> POST /v1/...   x-kvrt-prefill: 1      to a server that computes prompts
       <-- {"object": "prefill", ...}            their pages are in the store that servers share
router --> POST /v1/...                          to one that answers, and begins with them
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from kvrt.server.wire.http import headers_of

if TYPE_CHECKING:
    from kvrt.aio.runtime import AsyncRuntime
    from kvrt.outputs import Result
    from kvrt.server.asking import Ask

PREFILL = "x-kvrt-prefill"

SENT_S, GLANCE_S = 1.0, 0.002
"""Pages have so long to get to the store: those that do not are computed where the answer is."""


def is_prefill(scope: Scope) -> bool:
    """Whether only the prompt is to be computed."""
    return headers_of(scope, PREFILL.encode()) == ["1"]


def prompts_alone(asks: "Sequence[Ask]") -> "Sequence[Ask]":
    """What is asked, with one token in the place of each answer."""
    from kvrt.sampling import SamplingParams

    return [replace(each, params=SamplingParams(max_tokens=1)) for each in asks]


async def told_when_sent(runtime: "AsyncRuntime", results: "Sequence[Result]") -> dict[str, Any]:
    """What is answered, once the pages have gone to the store, if there is one."""
    end = asyncio.get_running_loop().time() + SENT_S
    while _sending(runtime) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(GLANCE_S)
    return {
        "object": "prefill",
        "prompt_tokens": sum(result.usage.prompt_tokens for result in results),
        "cached_tokens": sum(result.usage.cached_tokens for result in results),
        "sent": not _sending(runtime),
    }


def _sending(runtime: "AsyncRuntime") -> bool:
    """Whether pages are on their way; those of others count as well."""
    offload = runtime.runtime.stats().offload
    return offload is not None and offload.remote is not None and offload.sending > 0
