"""What each way to keep weights takes, how fast it is, and what it does to quality.

    python -m tests.bench.weights docs/quantised.md

writes the tables of that page anew, with machine and date: of the bundled model, and of those that
`ci/models` has fetched. About ten minutes on two cores. Speeds are one stream's; all ways take
turns, so that whatever else the machine does meets them alike.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.model.loader import load_model
from kvrt.registry import open_device
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import DeviceOptions
from kvrt.units import MIB
from tests.bench.page import head, machine, rewrite, row
from tests.bench.requantised import METHODS, requantised
from tests.model.stepping import stepping
from tests.models.real import SMOLLM

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "kvrt" / "model" / "bundled" / "tiny" / "heldout.txt"
NEW, ROUNDS, PROMPT = 32, 3, [1, 2]


@dataclass(frozen=True)
class Way:
    """A way to keep weights, and to multiply them.

    Args:
        name: for the table.
        options: of `load_model`.
        exact: activations are multiplied as they are.
        method: of `requantised.METHODS`, of a checkpoint that is made for it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    method: str = ""


@dataclass(frozen=True)
class Subject:
    """A model, and how much of the text it is asked for.

    Args:
        windows: so many pieces of the text.
        length: of each, in tokens.
        timed: it is large enough that a step's time is that of reading weights.
    """

    name: str
    model: str | Path
    windows: int
    length: int
    ways: tuple[Way, ...]
    timed: bool = True


BASE = Way("float32", {"dtype": "float32"})
QUANTISED = tuple(
    Way(f"`--quantize {bits}`{', exact' if exact else ''}", {"quantize": bits}, exact)
    for bits in ("int8", "int5", "int4")
    for exact in (False, True)
)
HALF = Way("bfloat16", {"dtype": "bfloat16"})
MADE = tuple(Way(method, method=method) for method in METHODS)
TINY = Subject(
    "tiny, the bundled model (of bfloat16)", "tiny", 6, 512, (BASE, HALF, *QUANTISED, *MADE), False
)
SUBJECTS = [
    TINY,
    Subject(
        "SmolLM2-135M-Instruct (of Q4_1, which float32 has unpacked)", SMOLLM, 2, 512,
        (BASE, HALF, *QUANTISED[:2], *MADE[:2], Way("Q4_1, as it is"),
         Way("Q4_1, exact", exact=True)),
    ),
]  # fmt: skip


@dataclass
class Quality:
    """Of a way, beside float32.

    Args:
        nbytes: of the weights.
        loss: nats a token.
        divergence: Kullback-Leibler divergence from float32's distributions, nats a token.
        same: share of the tokens whose likeliest successor is the same.
    """

    nbytes: int
    loss: float
    divergence: float
    same: float


@contextmanager
def checkpoints(subject: Subject) -> Iterator[dict[str, str | Path]]:
    """What each way reads, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            way.name: requantised(subject.model, way.method, Path(folder) / way.method)
            if way.method
            else subject.model
            for way in subject.ways
        }


def ids_of(subject: Subject, windows: int) -> list[int]:
    """Of the text, as long as the windows and one more."""
    device = open_device("cpu")
    ids = load_model(subject.model, device).encode(TEXT.read_text(encoding="utf-8"))
    device.close()
    return ids[: windows * subject.length + 1]


def scores(model_of: str | Path, way: Way, ids: list[int], length: int) -> tuple[int, list[Tensor]]:
    """Bytes of the weights, and log-probabilities [tokens, vocab] of each window."""
    device = open_device("cpu", options=DeviceOptions(exact=way.exact))
    model = load_model(model_of, device, **way.options)
    found = []
    for begin in range(0, len(ids) - 1, length):
        with stepping(model, device, texts=1, longest=length, kv="float32") as stepper:
            text = stepper.add(ids[begin : begin + length])
            while text.left:
                stepper.step([(text, min(256, text.left))])
        found.append(torch.stack(text.logits).log_softmax(-1))
    nbytes = model.weight_bytes
    device.close()
    return nbytes, found


def qualities(
    subject: Subject, models: dict[str, str | Path], windows: int | None = None
) -> Iterator[tuple[Way, Quality]]:
    base: list[Tensor] = []
    ids = ids_of(subject, windows or subject.windows)
    successors = torch.tensor(ids[1:])
    for way in subject.ways:
        nbytes, found = scores(models[way.name], way, ids, subject.length)
        base = base or found
        loss = functional.nll_loss(torch.cat(found), successors)
        divergence = sum(
            float(functional.kl_div(got, want, reduction="batchmean", log_target=True))
            for got, want in zip(found, base, strict=True)
        )
        same = sum(
            float((got.argmax(-1) == want.argmax(-1)).float().mean())
            for got, want in zip(found, base, strict=True)
        )
        yield (
            way,
            Quality(nbytes, float(loss), divergence / len(found), same / len(found)),
        )


def speeds(subject: Subject, models: dict[str, str | Path]) -> dict[str, float]:
    """Tokens a second of one stream, by a way's name: the best of some rounds, in turns."""
    runtimes = {
        way.name: Runtime(
            models[way.name],
            backend="cpu",
            activations="exact" if way.exact else "int8",
            quantized_dir=None,
            keep_warm=16 * MIB,
            **way.options,
        )
        for way in subject.ways
    }
    best = dict.fromkeys(runtimes, math.inf)
    for _ in range(ROUNDS):
        for name, runtime in runtimes.items():
            taken = []
            for new in (1, NEW + 1):
                params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
                begin = time.perf_counter()
                runtime.generate([PROMPT], params)
                taken.append(time.perf_counter() - begin)
            best[name] = min(best[name], taken[1] - taken[0])
    for runtime in runtimes.values():
        runtime.close()
    return {name: NEW / seconds for name, seconds in best.items()}


def tables() -> Iterator[str]:
    yield machine()
    for subject in SUBJECTS:
        if isinstance(subject.model, Path) and not subject.model.exists():
            continue
        with checkpoints(subject) as models:
            yield from table(subject, models)


def table(subject: Subject, models: dict[str, str | Path]) -> Iterator[str]:
    speed = speeds(subject, models) if subject.timed else {}
    columns = ("MB", "perplexity", "divergence", "same likeliest")
    yield ""
    yield from head(subject.name, *columns, *(("tokens/s", "speed") if speed else ()))
    for way, quality in qualities(subject, models):
        yield row(
            way.name,
            f"{quality.nbytes / 1e6:.2f}",
            f"{math.exp(quality.loss):.3f}",
            f"{quality.divergence:.5f}",
            f"{quality.same:.1%}",
            *((f"{speed[way.name]:,.0f}", relative(speed, way)) if speed else ()),
        )


def relative(speed: dict[str, float], way: Way) -> str:
    return f"{speed[way.name] / speed[BASE.name]:.2f}x"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("page", type=Path)
    rewrite(parser.parse_args().page, "python -m tests.bench.weights", tables())


if __name__ == "__main__":
    main()
