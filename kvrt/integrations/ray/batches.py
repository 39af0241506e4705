"""Prompts of a data set of Ray Data, answered by actors with a runtime each."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams


class Answering:
    """What ``Dataset.map_batches`` takes: columns ``text``, ``prompt_tokens``, ``tokens``,
    ``finish_reason`` and ``error`` are added to each batch.

        prompts.map_batches(
            Answering,
            fn_constructor_kwargs={"model": "MODEL", "max_tokens": 64},
            compute=ray.data.ActorPoolStrategy(size=2), batch_size=256, num_cpus=4,
        )

    A prompt that is refused, or fails, has its error in the column; the others of its batch are
    answered. If an actor dies, Ray gives its batch to another.

    Args:
        model: see `kvrt.Runtime`.
        column: that prompts are in: texts, or lists of token ids.
        options: of `kvrt.RuntimeConfig`.
        params: of `kvrt.SamplingParams`.
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        column: str = "prompt",
        options: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> None:
        self._params = SamplingParams(**params)
        self._column = column
        self._runtime = Runtime(model, **(options or {}))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [
            prompt if isinstance(prompt, str) else [int(token) for token in prompt]
            for prompt in batch[self._column].tolist()
        ]
        results = self._runtime.generate(prompts, self._params)
        return batch | _columns(results)


def _columns(results: list[Result]) -> dict[str, Any]:
    return {
        "text": np.array([result.text for result in results], object),
        "prompt_tokens": np.array([result.usage.prompt_tokens for result in results]),
        "tokens": np.array([result.usage.completion_tokens for result in results]),
        "finish_reason": np.array([result.finish_reason for result in results], object),
        "error": np.array(
            ["" if result.error is None else str(result.error) for result in results], object
        ),
    }
