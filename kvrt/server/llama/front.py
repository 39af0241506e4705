"""What the routes of the face share: the model, how it was set up, and who is answered."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kvrt.server.asking import AskedAdapter
from kvrt.server.errors import Refusal
from kvrt.server.llama.places import Places, Turn
from kvrt.server.llama.settings import Face
from kvrt.server.llama.told import paced
from kvrt.server.llama.watch import Watch
from kvrt.server.service import Service


class Scales:
    """How much of each adapter there is in an answer: all of one, or none.

    Args:
        face: names them.
    """

    def __init__(self, face: Face) -> None:
        self._all = face.lora
        self.now = [each.scale for each in face.lora]

    def told(self) -> list[dict[str, Any]]:
        """As ``/lora-adapters`` has them."""
        return [
            {"id": at, "path": each.path, "scale": scale, "task_name": "", "prompt_prefix": ""}
            for at, (each, scale) in enumerate(zip(self._all, self.now, strict=True))
        ]

    def set(self, wanted: object) -> None:
        """For all requests that say nothing.

        Raises:
            Refusal: it cannot be.
        """
        self.now = self._read(wanted)

    def asked(
        self, wanted: Sequence[Mapping[str, Any]] | None
    ) -> tuple[AskedAdapter | None, list[dict[str, Any]]]:
        """The adapter that is to answer, and what is told of that.

        Args:
            wanted: by a request; None: nothing.
        """
        scales = self.now if wanted is None else self._read(wanted)
        at = self._one(scales)
        told = [{"id": number, "scale": scale} for number, scale in enumerate(scales)]
        return None if at is None else AskedAdapter(self._all[at].name, at), told

    def _read(self, wanted: object) -> list[float]:
        scales = [0.0] * len(self._all)
        try:
            for each in wanted:  # type: ignore[attr-defined]
                at = int(each["id"])
                if not 0 <= at < len(scales):
                    raise Refusal(400, f"lora: there is no adapter {at}", param="lora")
                scales[at] = float(each["scale"])
        except (TypeError, KeyError, ValueError):
            why = "lora is no list of objects with id and scale"
            raise Refusal(400, why, param="lora") from None
        self._one(scales)
        return scales

    def _one(self, scales: Sequence[float]) -> int | None:
        """The number of the one that is on."""
        on = [at for at, scale in enumerate(scales) if scale]
        if len(on) > 1:
            raise Refusal(400, "an answer has one adapter at most", param="lora")
        if on and scales[on[0]] != 1:
            why = "the scale of an adapter is 0 or 1: it is as it was trained, or off"
            raise Refusal(400, why, param="lora")
        return on[0] if on else None


class Front:
    """Belongs to the event loop.

    Args:
        service: the model; its defaults become the face's.
        face: how it was set up.
    """

    def __init__(self, service: Service, face: Face) -> None:
        self.service = service
        self.served = service.served
        self.served.defaults = face.defaults
        self.model = service.served.model
        self.face = face
        self.name = service.served.names[0]
        self.scales = Scales(face)
        self.places = Places(face.slots)
        self.watch = Watch()
        service.runtime.runtime.add_observer(self.watch.observe)

    def running(
        self, turn: Turn, number: int, prompt: int, begun: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """``timings`` and ``prompt_progress`` of an answer that goes on.

        Args:
            number: of its prompt, in the request.
            prompt: tokens of that.
            begun: when it was asked, by ``time.monotonic``.
        """
        answers = None if turn.entry is None else turn.entry.answers
        now = time.monotonic()
        cached, first = 0, None
        if answers is not None:
            cached = self.watch.cached.get(answers.ids[number], 0)
            first = answers.progress.first
        come, first = first is not None, first or now
        prompt_s, said_s = max(0.0, first - begun), max(0.0, now - first)
        progress = {
            "total": prompt,
            "cache": cached,
            "processed": prompt if come else cached,
            "time_ms": round(prompt_s * 1e3),
        }
        return paced(prompt, cached, prompt_s, turn.said, said_s), progress

    def close(self) -> None:
        """Watch the engine no more."""
        self.service.runtime.runtime.remove_observer(self.watch.observe)
