"""What Ollama's clients ask of models: ``/api/tags``, ``show``, ``ps``, ``version``."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import kvrt
from kvrt.server.errors import Refusal
from kvrt.server.service import Service
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import Name, decode

NEVER = "9999-12-31T23:59:59Z"
"""When a model is given up that stays as long as its server."""


class ShowRequest(msgspec.Struct):
    """`name` is an older word for `model`."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool | None = None
    system: str | None = None


class About:
    """The routes.

    Args:
        service: that they are about.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._served = service.served

    async def version(self, request: Request) -> Response:
        return answer({"version": kvrt.__version__})

    async def tags(self, request: Request) -> Response:
        made = _time(self._served.created)
        return answer(
            {"models": [{**self.entry(n), "modified_at": made} for n in self._served.all_names]}
        )

    async def ps(self, request: Request) -> Response:
        held = {**self.held(), "expires_at": NEVER}
        return answer({"models": [{**self.entry(name), **held} for name in self._served.all_names]})

    def held(self) -> dict[str, Any]:
        """What it takes."""
        model = self._served.model
        info = self._service.runtime.runtime.device_info
        on_device = 0 if info.torch_device == "cpu" else model.weight_bytes
        return {"size_vram": on_device, "context_length": model.max_model_len}

    async def show(self, request: Request) -> Response:
        served = self._served
        body = await read_body(request.scope, request.receive, served.max_body)
        asked = decode(body, ShowRequest, strict=served.strict)
        name = asked.model or asked.name
        if name is None:
            raise Refusal(400, "model: Object missing required field `model`", param="model")
        served.check_name(name.removesuffix(":latest"))
        spec = served.model.spec
        family = spec.architecture
        shape = {
            "context_length": served.model.max_model_len,
            "embedding_length": spec.hidden,
            "block_count": len(spec.layers),
            "feed_forward_length": spec.intermediate,
            "attention.head_count": spec.heads,
            "attention.head_count_kv": spec.kv_heads,
            "vocab_size": spec.vocab,
        }
        return answer(
            {
                "modified_at": _time(served.created),
                "details": self._details(),
                "model_info": {
                    "general.architecture": family,
                    **{f"{family}.{key}": value for key, value in shape.items()},
                },
                "parameters": "\n".join(f"{k} {v}" for k, v in served.defaults.given.items()),
                "capabilities": ["completion"],
            }
        )

    def entry(self, name: str) -> dict[str, Any]:
        """The model under a name."""
        model = self._served.model
        return {
            "name": name,
            "model": name,
            "size": model.weight_bytes,
            "digest": model.fingerprint,
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        model = self._served.model
        family = model.spec.architecture
        return {
            "parent_model": "",
            "format": "safetensors" if model.path.is_dir() else "gguf",
            "family": family,
            "families": [family],
            "parameter_size": "",
            "quantization_level": str(model.dtype),
        }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
