"""The engine that Dynamo's worker calls, and its command line."""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from dynamo.common.backend.engine import EngineConfig, LLMEngine, LlmRegistration
from dynamo.common.backend.health_check import build_health_check_payload
from dynamo.common.backend.publisher import ZmqSource
from dynamo.common.backend.worker import WorkerConfig
from dynamo.llm.exceptions import InvalidArgument

from kvrt.aio.runtime import AsyncRuntime
from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError, RequestError
from kvrt.integrations.dynamo.words import chunk_of, params_of
from kvrt.integrations.events.publisher import EventPublisher


class KvrtEngine(LLMEngine):
    """One model, for Dynamo's `Worker`, which calls it on its event loop.

    Args:
        config: of the runtime.
        name: that clients ask for.
    """

    def __init__(self, config: RuntimeConfig, name: str) -> None:
        self._config, self._name = config, name
        self._runtime: AsyncRuntime | None = None
        self._publisher: EventPublisher | None = None

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple["KvrtEngine", WorkerConfig]:
        given = parser().parse_args(argv)
        try:
            config = RuntimeConfig(model=given.model, **json.loads(given.options))
        except (ValueError, TypeError, ConfigError) as error:
            raise SystemExit(f"error: --options: {error}") from None
        name = given.served_model_name or str(given.model)
        worker = WorkerConfig(
            namespace=given.namespace,
            component=given.component,
            endpoint=given.endpoint,
            model_name=str(given.model),
            served_model_name=name,
            discovery_backend=given.discovery_backend,
            request_plane=given.request_plane,
            event_plane=given.event_plane,
            use_kv_events=config.prefix_cache,
            custom_jinja_template=given.chat_template,
        )
        return cls(config, name), worker

    async def start(self, worker_id: int) -> EngineConfig:
        self._runtime = await AsyncRuntime.open(config=self._config)
        runtime = self._runtime.runtime
        if self._config.prefix_cache:
            self._publisher = EventPublisher("tcp://127.0.0.1:0")
            self._publisher.follow(runtime)
        stats = runtime.stats().cache
        return EngineConfig(
            model=str(runtime.model.path),
            served_model_name=self._name,
            llm=LlmRegistration(
                context_length=runtime.model.spec.max_positions,
                kv_cache_block_size=self._config.page_size,
                total_kv_blocks=stats.limit_bytes // stats.page_bytes,
                max_num_seqs=self._config.max_running,
                max_num_batched_tokens=self._config.max_batch_tokens,
            ),
        )

    async def kv_event_sources(self) -> list[Any]:
        if self._publisher is None:
            return []
        return [ZmqSource(endpoint=self._publisher.endpoint)]

    async def health_check_payload(self) -> dict[str, Any] | None:
        return dict(build_health_check_payload(bos_token_id=0))

    async def generate(
        self, request: Mapping[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of tokens, the last of each completion with why it ended.

        Raises:
            InvalidArgument: the request is bad, which names the field.
            KvrtError: the engine has failed.
        """
        assert self._runtime is not None, "start comes first"
        prompt = [int(token) for token in request["token_ids"]]
        try:
            params = params_of(request)
            stream = await self._runtime.stream(prompt, params, request_id=context.id())
        except RequestError as error:
            raise InvalidArgument(str(error)) from error
        said = 0
        async with stream:
            async for delta in stream:
                said += len(delta.token_ids)
                yield chunk_of(delta, len(prompt), said, stream.cached_tokens, self._text)

    def _text(self, token: int) -> str:
        assert self._runtime is not None, "start comes first"
        tokenizer = self._runtime.runtime.model.tokenizer
        return str(token) if tokenizer is None else tokenizer.decode([token], skip_special=False)

    async def abort(self, context: Any) -> None:
        if self._runtime is not None:
            self._runtime.abort(context.id())

    async def cleanup(self) -> None:
        if self._publisher is not None:
            await asyncio.to_thread(self._publisher.close)
        if self._runtime is not None:
            await self._runtime.close()
        self._publisher = self._runtime = None


def parser() -> argparse.ArgumentParser:
    """Of the command line: names that Dynamo's own workers have, from its variables."""
    made = argparse.ArgumentParser(
        prog="python -m kvrt.integrations.dynamo", description="A worker of Dynamo."
    )
    made.add_argument("model", help="a folder with a chat template, as the front end needs one")
    made.add_argument("--served-model-name", help="what clients ask for (the model's name)")
    made.add_argument(
        "--options",
        default="{}",
        metavar="JSON",
        help='of kvrt.RuntimeConfig, as {"memory_limit": "4GiB"}',
    )
    made.add_argument("--chat-template", metavar="FILE", help="for a model that has none")
    for name, variable, usual in (
        ("namespace", "DYN_NAMESPACE", "dynamo"),
        ("component", "DYN_COMPONENT", "backend"),
        ("endpoint", "DYN_ENDPOINT", "generate"),
        ("discovery-backend", "DYN_DISCOVERY_BACKEND", "etcd"),
        ("request-plane", "DYN_REQUEST_PLANE", "tcp"),
        ("event-plane", "DYN_EVENT_PLANE", None),
    ):
        made.add_argument(
            f"--{name}", default=os.environ.get(variable, usual), help=f"of Dynamo ({variable})"
        )
    return made
