"""A runtime in this process."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvrt.aio.runtime import AsyncRuntime
from kvrt.bench.clocks import Clocks
from kvrt.bench.targets import Endpoint, Heard, Said, as_text
from kvrt.bench.words import Held
from kvrt.model.chat.templates import Chat
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams


class InsideTarget:
    """Asks a runtime from the event loop that runs. Closing it closes the runtime.

    Args:
        endpoint: ``chat``: by the model's chat template.
        respect_eos: answers may end before they have all tokens.
        limits: more that is known of the device and what the model takes of it, such as
            ``read_bytes_per_s``.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        endpoint: Endpoint = "completions",
        respect_eos: bool = False,
        limits: Mapping[str, float] = {},
    ) -> None:
        self._limits = limits
        self._clocks = Clocks()
        self.here = True
        self._asked = AsyncRuntime(runtime)
        self._endpoint: Endpoint = endpoint
        self._respect_eos = respect_eos

    async def ask(self, said: Sequence[Said], new: int, heard: Heard) -> None:
        params = SamplingParams(max_tokens=new, ignore_eos=not self._respect_eos)
        prompt: Any = as_text(said)
        if self._endpoint == "chat":
            prompt = Chat([{"role": each.role, "content": each.text} for each in said])
        heard.send()
        stream = await self._asked.stream(prompt, params)
        async with stream:
            async for delta in stream:
                if delta.text:
                    heard.hear(delta.text)
            result = await stream.result()
        if heard.pieces:
            known, times = self._clocks, result.timings
            self._clocks = Clocks(
                known.firsts + 1, known.first + times.first_token, known.queued + times.queued
            )
        heard.finish = result.finish_reason
        heard.prompt_tokens = result.usage.prompt_tokens
        heard.cached_tokens = result.usage.cached_tokens
        heard.output_tokens = result.usage.completion_tokens

    async def look(self, at: float) -> Held:
        cache = self._asked.runtime.stats().cache
        groups = self._asked.runtime.picture(1)
        return Held(
            at=at,
            pinned=sum(group.used * group.page_bytes for group in groups),
            cached=cache.cached_bytes,
            held=cache.mapped_bytes + cache.pooled_bytes,
            limit=cache.limit_bytes,
        )

    async def clocks(self) -> Clocks:
        return self._clocks

    async def about(self) -> Mapping[str, Any]:
        runtime = self._asked.runtime
        config, info = runtime.config, runtime.device_info
        return {
            "kind": "inside",
            "model": runtime.model.name,
            "endpoint": self._endpoint,
            "backend": info.backend,
            "device": info.name,
            "dtype": runtime.model.dtype,
            "kv_dtype": runtime.cache.layouts[0].format,
            "threads": config.threads,
            "page_size": config.page_size,
            "max_batch_tokens": config.max_batch_tokens,
            "prefix_cache": config.prefix_cache,
            "weight_bytes": runtime.model.weight_bytes,
            **self._limits,
        }

    async def close(self) -> None:
        await self._asked.close()
