"""What llama-server tells of itself: health, properties, slots, adapters, models, metrics."""

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvrt.model.choice import parameters
from kvrt.net.address import is_loopback
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.llama.front import Front
from kvrt.server.llama.places import Slot
from kvrt.server.llama.settings import Face
from kvrt.server.llama.told import BUILD, settings, short
from kvrt.server.plain import Plain
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import Sampling

MAX_BODY = 64 << 10
MARKER = "<__media__>"


def not_supported(what: str, option: str) -> Refusal:
    """What a route is refused with that has to be turned on."""
    why = f"this server does not offer {what}: start it with {option}"
    return Refusal(HTTPStatus.NOT_IMPLEMENTED, why)


class About:
    """The routes.

    Args:
        front: that they are about.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._plain = Plain(front.service)

    async def health(self, request: Request) -> Response:
        """Whether requests will be answered."""
        told = await self._plain.ready(request)
        if told.status_code != HTTPStatus.OK:
            why = msgspec.json.decode(told.body)["status"]
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, why)
        return answer({"status": "ok"})

    async def models(self, request: Request) -> Response:
        names = self._front.served.all_names
        shown = [listed(name) for name in names[:1]]
        data = [self._model(name) for name in names]
        return answer({"models": shown, "object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._front.served.check_name(name)
        return answer(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        served, model = self._front.served, self._front.model
        return {
            "id": name,
            "aliases": served.names,
            "tags": [],
            "object": "model",
            "architecture": {
                "input_modalities": ["text"]
                if isinstance(model.vision, str)
                else ["text", "image"],
                "output_modalities": ["text"],
            },
            "created": served.created,
            "owned_by": "llamacpp",
            "meta": {
                "vocab_type": 2,
                "n_vocab": model.spec.vocab,
                "n_ctx": model.max_model_len,
                "n_ctx_train": model.spec.max_positions,
                "n_embd": model.spec.hidden,
                "n_params": parameters(model.spec),
                "size": model.weight_bytes,
                "ftype": str(model.dtype),
            },
        }

    async def props(self, request: Request) -> Response:
        front, face, model = self._front, self._front.face, self._front.model
        params = front.served.defaults.params(Sampling())
        told = settings(params, None, front.scales.asked(None)[1], stream=True, wanted=None)
        tokenizer = model.tokenizer
        named = {} if tokenizer is None else tokenizer.named
        templates = {} if tokenizer is None or tokenizer.chat is None else tokenizer.chat.sources
        return answer(
            {
                "default_generation_settings": {
                    "params": short(told),
                    "n_ctx": model.max_model_len,
                },
                **props(face, front.name),
                "model_ftype": str(model.dtype),
                "modalities": {
                    "vision": not isinstance(model.vision, str),
                    "video": False,
                    "audio": False,
                },
                "chat_template": templates.get("default", ""),
                "chat_template_caps": self._caps(bool(templates)),
                "bos_token": named.get("bos_token", ""),
                "eos_token": named.get("eos_token", ""),
            }
        )

    def _caps(self, chats: bool) -> dict[str, bool]:
        """What the chat template can, as far as it is known."""
        dialect = self._front.served.dialect
        calls = dialect.calls is not None
        return {
            "supports_object_arguments": calls and not dialect.texts,
            "supports_parallel_tool_calls": calls,
            "supports_preserve_reasoning": dialect.reasoning is not None,
            "supports_reasoning_effort": False,
            "supports_string_content": chats,
            "supports_system_role": chats,
            "supports_tool_calls": calls,
            "supports_tools": calls,
            "supports_typed_content": False,
        }

    async def set_props(self, request: Request) -> Response:
        """There is nothing to set, as with llama-server."""
        if not self._front.face.props:
            raise not_supported("changes of its properties", "--props")
        return answer({"success": True})

    async def slots(self, request: Request) -> Response:
        front = self._front
        if not front.face.slots_shown:
            raise not_supported("its slots", "--slots")
        full = front.places.busy == front.face.slots
        if request.query_params.get("fail_on_no_slot") and full:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no slot is free")
        return answer([self._slot(at, each) for at, each in enumerate(front.places.slots)])

    def _slot(self, number: int, slot: Slot) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": number,
            "n_ctx": self._front.model.max_model_len,
            "speculative": self._front.service.runtime.runtime.config.speculate is not None,
            "is_processing": slot.turn is not None,
        }
        turn = slot.turn or slot.last
        progress = None if turn is None or turn.entry is None else turn.entry.progress
        if turn is None or progress is None:
            return told
        most = turn.settings.get("n_predict", -1)
        cached = turn.cached or 0
        return told | {
            "id_task": turn.task,
            "n_prompt_tokens": progress.prompt_tokens,
            "n_prompt_tokens_processed": progress.prompt_tokens - cached,
            "n_prompt_tokens_cache": cached,
            "params": short(turn.settings),
            "next_token": [
                {
                    "has_next_token": slot.turn is not None,
                    "has_new_line": turn.lines,
                    "n_remain": most - turn.said if most >= 0 else -1,
                    "n_decoded": turn.said,
                }
            ],
        }

    async def act_on_slot(self, request: Request) -> Response:
        why = "slots have no pages of their own to save, restore or erase: kvrt keeps them with"
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, f"{why} --cache-dir and --offload of kvrt serve")

    async def lora(self, request: Request) -> Response:
        return answer(self._front.scales.told())

    async def set_lora(self, request: Request) -> Response:
        """For all requests that say nothing, so it is for admins."""
        owner, config = entry_of(request.scope).owner, self._front.service.config
        safe = self._front.face.guarded or is_loopback(config.host)
        if owner is None or not owner.rules or not safe:
            why = "adapters are switched with a key, or without keys from this machine"
            raise Refusal(HTTPStatus.FORBIDDEN, why)
        body = await read_body(request.scope, request.receive, MAX_BODY)
        try:
            wanted = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refusal(400, "the body is not JSON", code="invalid_json") from None
        if not isinstance(wanted, list):
            raise Refusal(400, "the body is no list of objects with id and scale")
        self._front.scales.set(wanted)
        return answer({"success": True})

    async def metrics(self, request: Request) -> Response:
        if not self._front.face.metrics:
            raise not_supported("metrics", "--metrics")
        places, watch = self._front.places, self._front.watch
        text = watch.text(places.busy, len(places.waiting))
        headers = {"Process-Start-Time-Unix": str(round(watch.begun))}
        return Response(text, headers=headers, media_type="text/plain; version=0.0.4")


def props(face: Face, name: str) -> dict[str, Any]:
    """What ``/props`` tells of the server, whatever its model does."""
    return {
        "total_slots": face.slots,
        "model_alias": name,
        "model_path": face.model_path,
        "media_marker": MARKER,
        "endpoint_slots": face.slots_shown,
        "endpoint_props": face.props,
        "endpoint_metrics": face.metrics,
        "ui": face.page,
        "ui_settings": {},
        "build_info": BUILD,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }


def listed(name: str) -> dict[str, Any]:
    """As Ollama's clients would have it."""
    return {
        "name": name, "model": name, "modified_at": "", "size": "", "digest": "", "type": "model",
        "description": "", "tags": [""], "capabilities": ["completion"], "parameters": "",
        "details": {"parent_model": "", "format": "gguf", "family": "", "families": [""],
                    "parameter_size": "", "quantization_level": ""},
    }  # fmt: skip
