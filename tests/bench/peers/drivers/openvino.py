"""OpenVINO GenAI by its pipeline with continuous batching."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from tests.bench.peers.work import Answer, Request

CACHE_GB = 2
BATCH_TOKENS = 4096


class Driver:
    """`options` are properties of its plug-in for CPUs."""

    def __init__(self, path: Path, threads: int, **options: str) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.max_num_batched_tokens = BATCH_TOKENS
        scheduling.enable_prefix_caching = False
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, **options}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(path), scheduling, "CPU", properties
        )
        self._asked = 0
        self.versions = {"openvino-genai": openvino_genai.__version__}

    def prepare(self, requests: list[Request]) -> None:
        pass

    def run(self, requests: list[Request]) -> list[Answer]:
        begun = time.perf_counter()
        handles = []
        for request in requests:
            how = openvino_genai.GenerationConfig()
            how.max_new_tokens, how.ignore_eos, how.do_sample = request.new, True, False
            ids = openvino.Tensor(np.array([request.prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._asked, ids, how))
            self._asked += 1
        answers = [Answer([], 0.0, 0.0) for _ in requests]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - begun
            for at, handle in enumerate(handles):
                while handle.can_read():
                    tokens = [int(token) for part in handle.read().values()
                              for token in part.generated_ids]  # fmt: skip
                    was = answers[at]
                    answers[at] = Answer([*was.tokens, *tokens], was.first or now, now)
        return answers
