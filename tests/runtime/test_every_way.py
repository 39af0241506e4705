"""Greedy output has the same bytes in whatever way it came about (promise P15).

A case is one combination from the cross product of everything that may differ. They are drawn by
seed, 500 of them, and each first shows that what it is about has happened.
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.chaos import Chaos
from kvrt.testing.matrices import FORMATS

from .conftest import CONFIG, Break, MakeRuntime
from .containers import CONTAINERS, WIDE, hold, options_for
from .test_ahead import Asynchronous
from .ways import WAYS, Ways, ask

CASES, DEFAULT = 500, 49
DEFAULT_CONTAINERS = {9: "int4", 20: "q4_k", 38: "int8"}
"""Of the cases that always run."""

GREEDY = SamplingParams(max_tokens=32, ignore_eos=True)


def prompts() -> list[list[int]]:
    """Of all lengths around those of pages; half of them begin as another one does."""
    rng = random.Random(0)
    stem = [rng.randrange(199) for _ in range(130)]
    lengths = (*range(1, 11), 15, 16, 17, 33, 64, 65, 66, 77, 80, 97, 110, 128, 130)
    found = [stem[:length] for length in lengths if length > 16]
    found += [[rng.randrange(199) for _ in range(length)] for length in lengths]
    return [[*prompt, n] for n, prompt in enumerate(found)]


PROMPTS = prompts()
SHORT = [n for n, prompt in enumerate(PROMPTS) if len(prompt) <= 17]

WINDOW = 21
"""Much shorter than most prompts, and no multiple of a page."""

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
GROUPS: dict[str, dict[str, object]] = {
    "full": {},
    "window": {"architectures": ["MistralForCausalLM"], "sliding_window": WINDOW},
    "both": {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": MIXED,
    },
    "gemma": {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": WINDOW,
        "layer_types": MIXED,
        "final_logit_softcapping": 3.0,
    },
    "parallel": {
        "architectures": ["Cohere2ForCausalLM"],
        "sliding_window": WINDOW,
        "layer_types": MIXED,
    },
    "ungated": {
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": WINDOW,
    },
    "latent": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_hidden_layers": 8,
        "q_lora_rank": 32,
        "kv_lora_rank": 448,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "normed late": {"architectures": ["HunYuanDenseV1ForCausalLM"]},
    "convolved": {
        "architectures": ["Lfm2ForCausalLM"],
        "norm_eps": 1e-5,
        "num_attention_heads": 8,  # in every other layer
        "num_key_value_heads": 8,
        "layer_types": ["conv", "full_attention"],
        "conv_L_cache": 11,
    },
    "states": {
        "architectures": ["Qwen3_5ForCausalLM"],
        "num_attention_heads": 8,  # likewise
        "num_key_value_heads": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
"""Models whose layers see everything, a window, or the one or the other; those of families that
compute with operators besides the device's own; and those with a recurrence."""

DEVICES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda device: device,
    "early copies": lambda device: Chaos(device, 1, copies="early"),
    "late copies": lambda device: Chaos(device, 2, copies="late"),
    "mixed copies": lambda device: Chaos(device, 3, copies="mixed"),
    "late steps": Asynchronous,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the cross product; see `AXES` for the values of each field.

    Args:
        way: a method of `Ways`.
        groups: the model, as in `GROUPS`.
        batch: how many prompts are asked together.
        max_batch_tokens: prompts are computed in chunks of so many tokens at most.
        page_size: tokens in a page.
        full: there is no free page when the prompts come, so that each one is taken from another.
        offload_write: see `RuntimeConfig`.
        prefix_cache_policy: see `RuntimeConfig`.
        speculate: see `RuntimeConfig`.
        dtype: of the weights.
        kv_cache_dtype: of the pages.
        seed: of the weights.
        left_by: a runtime that is another in this left the pages of the same prompts in the folder.
        device: the wrapper around it.
        number: also the seed of which prompts are asked.
        container: what matrices are kept as, as in `CONTAINERS`.
        activations: what they are multiplied with, if they are codes.
    """

    way: str
    groups: str
    batch: int
    max_batch_tokens: int
    page_size: int
    full: bool
    offload_write: str
    prefix_cache_policy: str
    speculate: str | None
    dtype: str
    kv_cache_dtype: str
    seed: int
    left_by: str
    device: str
    number: int
    container: str
    activations: str

    @property
    def options(self) -> dict[str, object]:
        """What is an option of the runtime."""
        here = {"way", "groups", "batch", "full", "left_by", "device", "number", "container"}
        own = {name: value for name, value in asdict(self).items() if name not in here}
        return own | options_for(self.container)

    @property
    def another(self) -> dict[str, object]:
        """Options of a runtime that left pages of its own; empty if there was none."""
        others = [v for v in AXES.get(self.left_by, ()) if v != getattr(self, self.left_by)]
        return {self.left_by: others[0]} if others else {}

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)) for field in fields(self))


AXES: dict[str, tuple[object, ...]] = {
    "groups": tuple(GROUPS),
    "batch": tuple(range(1, 17)),
    "max_batch_tokens": (7, 24, 96, 512),
    "page_size": (8, 16, 32),
    "full": (False, True),
    "offload_write": ("back", "through"),
    "prefix_cache_policy": ("lru", "lfu", "cost"),
    "speculate": (None, "ngram", "ngram:3"),
    "dtype": ("float32", "bfloat16"),
    "kv_cache_dtype": ("float32", "bfloat16"),
    "seed": (1, 2),
    "left_by": ("nobody", "dtype", "kv_cache_dtype", "seed"),
    "device": tuple(DEVICES),
}
"""A field of `Case` that is an option of the runtime needs no more than its values here."""


def draw(count: int) -> list[Case]:
    """The ways in turn; everything else by chance.

    From `DEFAULT` on, every other model is of codes, of all formats in turn.
    """
    rng, of_codes = random.Random(0), random.Random(1)
    cases = []
    for n in range(count):
        container = DEFAULT_CONTAINERS.get(n, "floats")
        if n >= DEFAULT and n % 2:
            container = CONTAINERS[1:][n // 2 % (len(CONTAINERS) - 1)]
        activations = of_codes.choice(("int8", "exact"))
        drawn: dict[str, Any] = {name: rng.choice(of) for name, of in AXES.items()}
        cases.append(
            Case(
                WAYS[n % len(WAYS)], number=n, container=container, activations=activations, **drawn
            )
        )
    return cases


ModelFor = Callable[[Case], Path]


@pytest.fixture(scope="module")
def model_for(tmp_path_factory: pytest.TempPathFactory) -> ModelFor:
    """By the format of keys and values: where they take half the bytes there are twice as many
    layers, so that a token takes `TOKEN` bytes in each."""
    known: dict[object, Path] = {}

    def folder(case: Case) -> Path:
        wide = case.container in FORMATS
        key = case.groups, case.kv_cache_dtype, wide
        if key not in known:
            config = CONFIG | GROUPS[case.groups]
            layers = (
                config["num_hidden_layers"] * {"float32": 1, "bfloat16": 2}[case.kv_cache_dtype]
            )  # type: ignore[operator]
            config["num_hidden_layers"] = layers
            config |= WIDE if wide else {}
            if "layer_types" in config:
                config["layer_types"] = [*config["layer_types"] * layers][:layers]  # type: ignore[operator]
            known[key] = tmp_path_factory.mktemp("model")
            (known[key] / "config.json").write_text(json.dumps(config))
        return known[key]

    return folder


@pytest.fixture(scope="module")
def alone(model_for: ModelFor) -> Callable[[Case, int], tuple[int, ...]]:
    """What the model says to a prompt, asked by itself, by a runtime that reuses nothing."""
    known: dict[object, list[tuple[int, ...]]] = {}

    def answer(case: Case, number: int) -> tuple[int, ...]:
        names = ("dtype", "kv_cache_dtype", "seed", "activations")
        options = {name: getattr(case, name) for name in names} | options_for(case.container)
        key = (case.groups, case.container, *options.values())
        if key not in known:
            with Runtime(
                model_for(case), backend="cpu", load_format="dummy", prefix_cache=False, **options
            ) as runtime:
                known[key] = [ask(runtime, [prompt], GREEDY)[0][0] for prompt in PROMPTS]
        return known[key][number]

    return answer


@pytest.mark.promise("P15")
@pytest.mark.promise("P20")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.extra] if n >= DEFAULT else [])
        for n, case in enumerate(draw(CASES))
    ],
)
def test_every_way_says_the_same(
    case: Case,
    make_runtime: MakeRuntime,
    break_device: Break,
    model_for: ModelFor,
    alone: Callable[[Case, int], tuple[int, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold(case.container, monkeypatch)
    rng = random.Random(case.number)
    count = case.batch
    if case.way.startswith("preempted"):
        count = 16
        # Admitted without a thought of what comes, so that pages run out.
        monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    chosen = rng.sample(range(len(PROMPTS)), count)
    if case.way.startswith("preempted") and case.groups != "full":
        # What is longer than the window grows no more.
        chosen = [*SHORT, *(n for n in chosen if n not in SHORT)]
    if case.batch < 4:
        chosen[-1] = len(PROMPTS) - 1  # long enough to have full pages
    right = [alone(case, n) for n in chosen]
    break_device(DEVICES[case.device])

    def make(**options: object) -> Runtime:
        return make_runtime(**{"model": model_for(case)} | case.options | options)

    ways = Ways(
        make,
        [PROMPTS[n] for n in chosen],
        tmp_path / "pages",
        GREEDY,
        full=case.full,
        left_by=case.another,
    )
    assert getattr(ways, case.way)() == right
