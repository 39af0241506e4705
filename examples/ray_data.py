"""Prompts of a file, answered by two actors on a Ray cluster, and written to a folder. Without a
cluster, Ray starts one on this machine.

    pip install 'kvrt[ray]'
    python examples/ray_data.py PROMPTS.jsonl ANSWERS [MODEL]

Each line of the file is an object with a field ``prompt``.
"""

import sys

import ray

from kvrt.integrations.ray.batches import Answering

if __name__ == "__main__":
    source, folder, *rest = sys.argv[1:]
    ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, if there is one
    answered = ray.data.read_json(source).map_batches(
        Answering,
        fn_constructor_kwargs={
            "model": rest[0] if rest else "tiny",
            "max_tokens": 24,
            "options": {"memory_limit": "1GiB", "threads": 1},
        },
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=32,
        num_cpus=0.5,  # actors keep theirs: where there are two, reading needs one as well
    )
    answered.write_json(folder)
    ray.shutdown()
