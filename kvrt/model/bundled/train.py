"""Train the bundled model: `python -m kvrt.model.bundled.train --out DIRECTORY`.

Everything is fixed: the corpus is the running Python's standard library, the seeds, the order of
the data and the number of steps are constants below, and one thread does the arithmetic. The same
Python, torch and CPU type give the same file; others give a model as good but not bit-equal.
The run takes 40 minutes of one core. `--checkpoint FILE` makes it resumable.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from kvrt.model.bundled.card import PROMPTS, SAMPLE_TOKENS, model_card
from kvrt.model.bundled.corpus import (
    END,
    Document,
    documents,
    held_out_slice,
    summary,
)
from kvrt.model.bundled.net import CausalLM, Shape

SHAPE = Shape()
END_ID = 0  # special tokens come first in the vocabulary
SEED = 0
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
DECAY_STEPS = 2000
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0
CHECKPOINT_STEPS = 250
SLICE_LIMIT = 160_000
SLICE_PER_DOCUMENT = 8_000


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of steps with one shape of batch."""

    steps: int
    batch: int
    length: int


STAGES = (
    Stage(steps=6000, batch=4, length=256),
    # Long windows last: they cost more per token, and positions above 256 are learnt quickly.
    Stage(steps=1000, batch=2, length=1024),
)
TOTAL_STEPS = sum(stage.steps for stage in STAGES)


def train_tokenizer(corpus: list[Document]) -> Tokenizer:
    """Byte-level BPE over the training documents; any UTF-8 text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in corpus if not d.held_out), trainer)
    return tokenizer


def encode_documents(tokenizer: Tokenizer, corpus: list[Document]) -> list[Tensor]:
    """Token ids of each document, each ended by `END`."""
    encodings = tokenizer.encode_batch([d.text for d in corpus])
    return [torch.tensor([*encoding.ids, END_ID]) for encoding in encodings]


def batches(texts: list[Tensor], stages: Sequence[Stage] = STAGES) -> Iterator[Tensor]:
    """The batch of every step in turn: [batch, length + 1] token ids.

    Each epoch shuffles the documents, lays them end to end, and cuts windows that overlap by one
    token, so that every token is predicted once an epoch (but for a last, incomplete window).
    """
    epochs = count()
    for stage in stages:
        left = stage.steps
        while left:
            order = torch.Generator().manual_seed(SEED + next(epochs))
            shuffled = torch.randperm(len(texts), generator=order).tolist()
            stream = torch.cat([texts[i] for i in shuffled])
            windows = stream.unfold(0, stage.length + 1, stage.length)
            shuffled_windows = torch.randperm(len(windows), generator=order)
            for chosen in torch.split(shuffled_windows, stage.batch)[:left]:
                yield windows[chosen]
                left -= 1


def learning_rate(step: int, steps: int = TOTAL_STEPS) -> float:
    """Linear warm-up, constant, then linear decay to nothing after the last of `steps`.

    The constant part does not depend on how many steps follow (Hägele et al. 2024), so a longer or
    a shorter run can go on from the same checkpoint.
    """
    return LEARNING_RATE * min(
        1.0, (step + 1) / WARMUP_STEPS, (steps - step) / min(DECAY_STEPS, steps / 2)
    )


def make_optimizer(net: CausalLM) -> torch.optim.AdamW:
    """AdamW; norms are not decayed."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def train(
    net: CausalLM,
    texts: list[Tensor],
    checkpoint: Path | None = None,
    stages: Sequence[Stage] = STAGES,
) -> tuple[int, float]:
    """Run every stage. Returns the tokens predicted and the CPU seconds taken.

    With a `checkpoint` file the state is saved there now and then, and a run that finds the file
    goes on from it; the data order is a function of the step alone, so the result is the same.
    """
    optimizer = make_optimizer(net)
    steps = sum(stage.steps for stage in stages)
    done, tokens, seconds = 0, 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done, tokens, seconds = state["done"], state["tokens"], state["seconds"]
    started = time.process_time() - seconds
    recent = 0.0
    for step, windows in islice(enumerate(batches(texts, stages)), done, None):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = net.loss(windows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        tokens += windows[:, 1:].numel()
        recent = loss.item() if not recent else 0.98 * recent + 0.02 * loss.item()
        seconds = time.process_time() - started
        if (step + 1) % 50 == 0:
            print(f"{step + 1}/{steps} loss {recent:.3f} {seconds:.0f} s", flush=True)
        if checkpoint is not None and ((step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps):
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"done": step + 1, "tokens": tokens, "seconds": seconds}
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            os.replace(part, checkpoint)
    return tokens, seconds


@torch.no_grad()
def measure(net: CausalLM, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Loss on `text`: tokens 1.. are each predicted once, in windows of the longest context.

    Windows overlap by one token and share no context, so the first tokens of each see little.
    """
    ids = torch.tensor(tokenizer.encode(text).ids)
    step = net.shape.max_position_embeddings
    total = sum(
        net.loss(ids[None, i : i + step + 1], reduction="sum").item()
        for i in range(0, len(ids) - 1, step)
    )
    return {
        "tokens": len(ids),
        "bytes": len(text.encode()),
        "nats_per_token": round(total / (len(ids) - 1), 4),
        "bits_per_byte": round(total / math.log(2) / len(text.encode()), 4),
        "window": step,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_model(net: CausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face files: weights in bfloat16, configuration, tokenizer."""
    weights = {name: p.to(torch.bfloat16).contiguous() for name, p in net.state_dict().items()}
    weights_file = folder / "model.safetensors"
    save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # safetensors writes for the owner's eyes only
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **dataclasses.asdict(net.shape),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "bos_token_id": END_ID,
            "eos_token_id": END_ID,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
    )
    write_json(
        folder / "generation_config.json",
        # Sampling is recommended: greedy answers of so small a model soon go round in circles.
        {
            "bos_token_id": END_ID,
            "eos_token_id": END_ID,
            "do_sample": True,
            "temperature": 0.8,
            "top_p": 0.95,
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": net.shape.max_position_embeddings,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def load_saved(folder: Path) -> CausalLM:
    """The saved bfloat16 weights, computed in float32."""
    net = CausalLM(SHAPE)
    weights = load_file(folder / "model.safetensors")
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train kvrt's bundled model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--checkpoint", type=Path, help="file to save to and resume from")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    corpus = documents()
    tokenizer = train_tokenizer(corpus)
    training = [d for d in corpus if not d.held_out]
    net = CausalLM(SHAPE)
    texts = encode_documents(tokenizer, training)
    tokens, seconds = train(net, texts, arguments.checkpoint)
    save_model(net, tokenizer, folder)

    saved = load_saved(folder)
    sample = held_out_slice(corpus, SLICE_LIMIT, SLICE_PER_DOCUMENT)
    (folder / "heldout.txt").write_text(sample, encoding="utf-8")
    everything = END.join(d.text for d in corpus if d.held_out)
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "cpu_seconds": round(seconds),
        "parameters": sum(p.numel() for p in net.parameters()),
        "corpus": summary(corpus) | {"training_tokens": sum(len(text) for text in texts)},
        "tokens_seen": tokens,
        "held_out": measure(saved, tokenizer, everything),
        "heldout.txt": measure(saved, tokenizer, sample),
        "hyperparameters": {
            "seed": SEED,
            "optimizer": "AdamW",
            "learning_rate": LEARNING_RATE,
            "warmup_steps": WARMUP_STEPS,
            "decay_steps": DECAY_STEPS,
            "betas": BETAS,
            "weight_decay": WEIGHT_DECAY,
            "gradient_norm": GRADIENT_NORM,
            "stages": [dataclasses.asdict(stage) for stage in STAGES],
        },
    }
    write_json(folder / "training.json", record)
    samples = []
    for prompt in PROMPTS:
        answer = saved.continue_greedily(tokenizer.encode(prompt).ids, SAMPLE_TOKENS, END_ID)
        samples.append((prompt, tokenizer.decode(answer)))
    (folder / "README.md").write_text(model_card(record, samples), encoding="utf-8")


if __name__ == "__main__":
    main()
