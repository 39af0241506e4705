"""How many tokens a request may take at most, before the model is asked."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from kvrt.aio.runtime import AsyncRuntime
from kvrt.engine.prompts import read_prompt
from kvrt.server.asking import Ask
from kvrt.server.tenants.accounts import Visit


async def reserved(runtime: AsyncRuntime, asks: Sequence[Ask], visit: Visit) -> Sequence[Ask]:
    """What is asked, its prompts as tokens: the visit has reserved what it may take of them. Where
    no quota of tokens is to be kept to, as it is.

    Raises:
        Refusal: more than is left.
        RequestError: a prompt is none.
    """
    if not visit.reserves:
        return asks
    model = runtime.runtime.model
    counted, most = [], 0
    for each in asks:
        tokens, images = await asyncio.to_thread(read_prompt, each.prompt, model)
        room = max(0, model.max_model_len - len(tokens))
        wanted = each.params.max_tokens
        most += len(tokens) + each.params.n * (room if wanted is None else min(wanted, room))
        counted.append(each if images else replace(each, prompt=tokens))
    visit.reserve(most)
    return counted
