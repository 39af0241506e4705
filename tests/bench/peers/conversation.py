"""Tokens that each turn of a conversation takes on a hybrid, in kvrt and in llama.cpp.

    python -m tests.bench.peers.conversation

A tiny model with random weights is written as a checkpoint and as GGUF: a third of its layers
attend, the others have short convolutions (LFM2). Both engines compute it in float32 and say the
same. llama.cpp is that of ci/peers, driven by llama-cpp-python as it is; its server keeps copies of
states besides, which the library does not. Only tokens are counted, so a busy machine changes
nothing. The exit status is 1 if an answer differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.bench.peers.child import ROOT
from tests.model.checkpoints import VOCAB, make_model, save_model
from tests.model.ggufs import save_gguf, tokenizer_keys

DRIVER = Path(__file__).parent / "drivers" / "llama_turns.py"
LONG, NEW, CONTEXT = 4000, 16, 8192
TURNS = (
    "a first question of 4,000 tokens",
    "the next question, after its answer",
    "the same question again, for another answer",
    "that question with other words at its end",
    "another conversation of 4,000 tokens",
    "and back in the first one",
)


def models(folder: Path) -> tuple[Path, Path]:
    """The model as a checkpoint, and as a file for llama.cpp."""
    model = make_model("lfm-2", max_position_embeddings=CONTEXT, conv_bias=False)
    checkpoint = save_model(model, folder / "checkpoint")
    keys = tokenizer_keys()
    tokens = keys["tokenizer.ggml.tokens"]
    further = [f"<{at}>" for at in range(VOCAB - len(tokens))]
    keys["tokenizer.ggml.tokens"] = tokens + further
    keys["tokenizer.ggml.token_type"] += [1] * len(further)
    return checkpoint, save_gguf(checkpoint, folder / "model.gguf", **keys)


def by_kvrt(checkpoint: Path) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """The prompts of the turns, how many tokens of each are computed, and the answers."""
    greedy = SamplingParams(max_tokens=NEW, ignore_eos=True)
    prompts: list[list[int]] = []
    computed: list[int] = []
    said: list[list[int]] = []
    with Runtime(checkpoint, backend="cpu", dtype="float32") as runtime:

        def turn(prompt: list[int]) -> None:
            result = runtime.generate([prompt], greedy)[0]
            prompts.append(prompt)
            computed.append(len(prompt) - result.usage.cached_tokens)
            said.append(list(result.token_ids))

        first = [3 + n * n % 251 for n in range(LONG)]
        turn(first)
        second = [*first, *said[0], *range(10, 50)]
        turn(second)
        turn(second)
        edited = [*second[:-10], *range(100, 110)]
        turn(edited)
        turn([3 + n * n * n % 241 for n in range(LONG)])
        turn([*edited, *said[3], *range(60, 90)])
    return prompts, computed, said


def by_llama(
    python: Path, model: Path, prompts: Sequence[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """How many tokens llama.cpp computes of each prompt, and its answers."""
    job = {"model": str(model), "context": CONTEXT, "new": NEW, "prompts": prompts}
    done = subprocess.run(
        [python, DRIVER], input=json.dumps(job), capture_output=True, text=True, check=True
    )
    turns = json.loads(done.stdout)
    return [turn["computed"] for turn in turns], [turn["said"] for turn in turns]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.peers.conversation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/peers", metavar="FOLDER",
                        help="of ci/peers, for llama.cpp (default: build/peers)")  # fmt: skip
    python = parser.parse_args().work / "llama.cpp/bin/python"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, gguf = models(Path(folder))
        prompts, ours, said = by_kvrt(checkpoint)
        theirs, others = by_llama(python, gguf, prompts)
    print("| turn | tokens of its prompt | computed by kvrt | by llama.cpp |")
    print("| --- | --- | --- | --- |")
    for what, prompt, mine, other in zip(TURNS, prompts, ours, theirs, strict=True):
        print(f"| {what} | {len(prompt):,} | {mine:,} | {other:,} |")
    if said != others:
        print("they do not say the same", file=sys.stderr)
    return int(said != others)


if __name__ == "__main__":
    sys.exit(main())
