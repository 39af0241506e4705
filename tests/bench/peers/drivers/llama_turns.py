"""llama.cpp's answers to the turns of conversations, as `llama-cpp-python` drives its library: it
keeps what it can of the text before. Reads a job, and writes what it did, as JSON."""

import json
import sys
from typing import Any

from llama_cpp import Llama


class Counting(Llama):
    """Counts the tokens that are computed."""

    computed = 0

    def eval(self, tokens: Any) -> None:
        self.computed += len(tokens)
        super().eval(tokens)


def main() -> None:
    job = json.load(sys.stdin)
    llama = Counting(job["model"], n_ctx=job["context"], n_batch=512, verbose=False)
    turns = []
    for prompt in job["prompts"]:
        llama.computed, said, first = 0, [], 0
        for token in llama.generate(prompt, top_k=1, repeat_penalty=1.0):
            first = first or llama.computed
            said.append(token)
            if len(said) == job["new"]:
                break
        turns.append({"computed": first, "said": said})
    json.dump(turns, sys.stdout)


if __name__ == "__main__":
    main()
