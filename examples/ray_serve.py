"""Two replicas of a model on a Ray cluster, asked through a handle. Without a cluster, Ray starts
one on this machine.

    pip install 'kvrt[ray]'
    python examples/ray_serve.py [MODEL]
"""

import asyncio
import sys

import ray
from ray import serve

from kvrt import SamplingParams
from kvrt.integrations.ray.asking import Answers
from kvrt.integrations.ray.serving import application

PROMPTS = ["def read_lines(path):", "def add(a, b):", "class Stack:", "import os\n"]


async def ask(answers: Answers) -> None:
    params = SamplingParams(max_tokens=24)
    results = await asyncio.gather(*(answers.generate(prompt, params) for prompt in PROMPTS))
    for prompt, result in zip(PROMPTS, results, strict=True):
        print(repr(prompt + result.text))
    async for delta in answers.stream(PROMPTS[0], params):
        print(delta.text, end="", flush=True)
    print()


if __name__ == "__main__":
    ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, if there is one
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    handle = serve.run(application(model, replicas=2, memory_limit="1GiB"))
    asyncio.run(ask(Answers(handle)))
    serve.shutdown()
    ray.shutdown()
