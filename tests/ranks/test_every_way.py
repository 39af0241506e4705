"""What several ranks say is what one process says that reuses nothing, in whatever way it came
about: the ways and axes of ``tests/runtime/test_every_way.py`` (promise P15)."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvrt.runtime import Runtime
from tests.runtime.test_every_way import AXES, GREEDY, GROUPS, PROMPTS, SHORT, Case, draw
from tests.runtime.ways import WAYS, Ways, ask

from .conftest import CONFIG, MakeRuntime

RANKS: dict[str, dict[str, int]] = {
    "2 parts": {"tensor_parallel": 2},
    "2 stages": {"pipeline_parallel": 2},
    "4 parts": {"tensor_parallel": 4},
    "2 parts x 2 stages": {"tensor_parallel": 2, "pipeline_parallel": 2},
}
CUT = ("full", "window", "both", "gemma", "parallel", "ungated", "normed late")
"""Of `GROUPS`, those that can be cut into parts."""

CASES = 8 * len(RANKS) * len(WAYS)
DEFAULT = ("2 parts-preempted_and_moved",)
"""Of the cases those that always run."""


def cases() -> list[object]:
    """Each way of each number of ranks; everything else by chance."""
    found = []
    rng = random.Random(15)
    for number, case in enumerate(draw(CASES)):
        ranks = list(RANKS)[number // len(WAYS) % len(RANKS)]
        container = rng.choice(("floats", "floats", "int8", "int4"))
        cut = replace(
            case, groups=rng.choice(CUT), device="plain", container=container, activations="int8"
        )
        name = f"{ranks}-{cut.way}"
        always = name in DEFAULT and number < len(RANKS) * len(WAYS)
        if always:  # short ones
            cut = replace(cut, groups="full", container="floats", full=False, left_by="nobody")
        marks = [] if always else [pytest.mark.extra]
        found.append(pytest.param(cut, RANKS[ranks], id=f"{number}-{name}", marks=marks))
    return found


@pytest.fixture(scope="module")
def model_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Each rank has as many bytes of a token as `Ways` wants: more heads for more parts, and more
    layers for more stages, or for keys that take half as much."""
    known: dict[object, Path] = {}

    def folder(case: Case, ranks: dict[str, int]) -> Path:
        parts, stages = (ranks.get(f"{kind}_parallel", 1) for kind in ("tensor", "pipeline"))
        key = case.groups, case.kv_cache_dtype, parts, stages
        if key not in known:
            layers = 4 * stages * {"float32": 1, "bfloat16": 2}[case.kv_cache_dtype]
            heads = 4 * parts
            config = CONFIG | {"hidden_size": 64, "intermediate_size": 96} | GROUPS[case.groups]
            config |= {"num_hidden_layers": layers, "num_attention_heads": heads}
            config |= {"num_key_value_heads": heads}
            if "layer_types" in config:
                kinds = config["layer_types"]
                assert isinstance(kinds, list)
                # As many of each in every stage.
                config["layer_types"] = (kinds * layers)[: layers // stages] * stages
            known[key] = tmp_path_factory.mktemp("model")
            (known[key] / "config.json").write_text(json.dumps(config))
        return known[key]

    return folder


@pytest.mark.promise("P15")
@pytest.mark.parametrize(("case", "ranks"), cases())
def test_ranks_say_the_same_in_every_way(
    case: Case,
    ranks: dict[str, int],
    make_runtime: MakeRuntime,
    model_for: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(case.number)
    count = case.batch
    if case.way.startswith("preempted"):
        count = 16
        monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    chosen = rng.sample(range(len(PROMPTS)), count)
    if case.way.startswith("preempted") and case.groups != "full":
        chosen = [*SHORT, *(n for n in chosen if n not in SHORT)]
    if case.batch < 4:
        chosen[-1] = len(PROMPTS) - 1
    model = model_for(case, ranks)
    options = {**case.options, "model": model, "memory_limit": "512MiB", "quantized_dir": None}
    with Runtime(
        backend="cpu", load_format="dummy", **options | {"prefix_cache": False, "speculate": None}
    ) as alone:
        right = [ask(alone, [PROMPTS[n]], GREEDY)[0][0] for n in chosen]

    def make(**more: object) -> Runtime:
        return make_runtime(**options | ranks | more)

    ways = Ways(
        make,
        [PROMPTS[n] for n in chosen],
        tmp_path / "pages",
        GREEDY,
        full=case.full,
        left_by=case.another,
    )
    assert getattr(ways, case.way)() == right


def test_every_axis_is_drawn() -> None:
    drawn = [param.values[0] for param in cases()]  # type: ignore[attr-defined]
    for name in AXES.keys() - {"groups", "device", "batch"}:
        assert {getattr(case, name) for case in drawn} == set(AXES[name])
