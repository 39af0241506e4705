"""The weights of several ranks: each byte of the files is read by one of them."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from kvrt.errors import ModelError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, ranks_here

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=1)
PROMPT = "def read_lines(path):\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, in a folder of its own."""
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        source = runtime.model.path
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("tiny") / "model"))


@pytest.mark.parametrize(
    "ranks",
    [
        {"tensor_parallel": 2},
        {"tensor_parallel": 2, "tensor_parallel_mode": "fast"},
        pytest.param({"pipeline_parallel": 2}, marks=pytest.mark.extra),
        pytest.param({"tensor_parallel": 4}, marks=pytest.mark.extra),  # two heads of keys
        pytest.param({"tensor_parallel": 2, "pipeline_parallel": 2}, marks=pytest.mark.extra),
        pytest.param(
            {"tensor_parallel": 4, "tensor_parallel_mode": "fast"}, marks=pytest.mark.extra
        ),
    ],
    ids=lambda ranks: "-".join(f"{name[0]}{count}" for name, count in ranks.items()),
)
def test_each_byte_is_read_by_one_rank(
    ranks: dict[str, Any], tiny: Path, make_runtime: MakeRuntime
) -> None:
    options = {"model": tiny, "load_format": "auto", "memory_limit": "64MiB"}
    several = make_runtime(**options, **ranks)
    reads = several.model.resident.reads
    assert len(reads) == len(ranks_here()) + 1
    assert all(reads)
    spans = sorted(
        (start, start + read.length)
        for own in reads
        for read in own
        for start in (read.start + time * read.pitch for time in range(read.times))
    )
    size = (tiny / "model.safetensors").stat().st_size
    with open(tiny / "model.safetensors", "rb") as file:
        first = 8 + int.from_bytes(file.read(8), "little")
    assert spans[0][0] == first
    assert spans[-1][1] == size
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    one = make_runtime(**options)
    right, said = (each.generate(PROMPT, GREEDY)[0] for each in (one, several))
    if "tensor_parallel_mode" in ranks:  # of likely tokens, none is all but equal to another
        assert said.token_ids == right.token_ids
    else:
        assert said.completions == right.completions


@pytest.mark.extra
def test_a_rank_that_finds_damage_names_the_tensor(tiny: Path, make_runtime: MakeRuntime) -> None:
    folder = Path(shutil.copytree(tiny, tiny.parent / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][-1, -1] = float("nan")  # of the last rank
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"rank 1.*{name}.*not finite"):
        make_runtime(model=folder, load_format="auto", tensor_parallel=2)
    assert ranks_here() == []
