"""From a request's fields to `SamplingParams`: the request's, else the model's, else the API's."""

from typing import Any

from kvrt.errors import ModelError, RequestError
from kvrt.model.generation import GenerationDefaults
from kvrt.sampling import SamplingParams
from kvrt.server.words.fields import Sampling

SAME = ("temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "n", "min_tokens", "stop_token_ids", "ignore_eos",
        "skip_special_tokens", "stop")  # fmt: skip
"""Fields that mean what `SamplingParams`' of that name mean."""

DRAWN = ("temperature", "top_k", "top_p", "min_p")
SMALLEST_SHARE = 1e-6
"""A top_p of 0 keeps the likeliest token; so does this."""


class Defaults:
    """What applies where a request says nothing.

    Args:
        model: what the model's author recommends: where that is to draw tokens, all of it, else
            the repetition penalty alone.

    Raises:
        ModelError: it recommends what cannot be.
    """

    def __init__(self, model: GenerationDefaults) -> None:
        names = ("repetition_penalty", *(DRAWN if model.sample else ()))
        given = {name: getattr(model, name) for name in names}
        self.given = {"temperature": 1.0} | {k: v for k, v in given.items() if v is not None}
        try:
            SamplingParams(**self.given)
        except RequestError as error:
            raise ModelError(f"{model.file} recommends something that cannot be: {error}") from None

    def params(self, fields: Sampling, **own: Any) -> SamplingParams:
        """The parameters of one request.

        Args:
            own: what the protocol calls otherwise; None is nothing.

        Raises:
            RequestError: values do not go together.
        """
        wishes = {name: getattr(fields, name) for name in SAME}
        if fields.logit_bias is not None:  # a bias of 0 is none
            wishes["logit_bias"] = {k: v for k, v in fields.logit_bias.items() if v}
        if fields.top_p is not None:
            wishes["top_p"] = max(fields.top_p, SMALLEST_SHARE)
        if fields.seed is not None:
            wishes["seed"] = fields.seed % 2**64
        wishes |= own
        return SamplingParams(
            **{**self.given, **{k: v for k, v in wishes.items() if v is not None}}
        )
