"""torch by transformers' `generate`, eagerly; requests of different lengths are padded, as it asks
its users to do."""

import time
from pathlib import Path

import torch
import transformers

from tests.bench.peers.work import Answer, Request


class Driver:
    def __init__(self, path: Path, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype)
        ).eval()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def prepare(self, requests: list[Request]) -> None:
        pass

    @torch.inference_mode()
    def run(self, requests: list[Request]) -> list[Answer]:
        width, new = max(len(request.prompt) for request in requests), requests[0].new
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        steps: list[float] = []

        def note(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            steps.append(time.perf_counter())
            return logits

        begun = time.perf_counter()
        made = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0, logits_processor=[note],
        )  # fmt: skip
        last = time.perf_counter() - begun
        return [Answer(row, steps[0] - begun, last) for row in made[:, width:].tolist()]
