"""What ranks have of a model's weights: together all of it, and each what it would have by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.model.checkpoint.blocks import mapped, raw_blocks
from kvrt.model.checkpoint.header import TensorEntry
from kvrt.model.config import read_config
from kvrt.model.shard import Shard
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.slices import OF_HIDDEN, cuts_of
from kvrt.model.weights.weights import weights_of

from .conftest import CONFIG

SHAPES: dict[str, dict[str, object]] = {
    "dense": {"attention_bias": True, "mlp_bias": True},
    "experts": {
        "architectures": ["Qwen2MoeForCausalLM"], "num_experts": 6, "num_experts_per_tok": 3,
        "moe_intermediate_size": 40, "shared_expert_intermediate_size": 57,
    },
}  # fmt: skip
ON_ALL = "router", "shared_scale"


@pytest.fixture(scope="module", params=SHAPES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(CONFIG | SHAPES[request.param]))
    return read_config(path)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("parts", [2, 4])
def test_each_number_of_a_matrix_is_with_one_rank(spec: ModelSpec, parts: int, exact: bool) -> None:
    by_columns = set()
    for weight in weights_of(spec):
        counts = {part.name: np.zeros(part.shape, int) for part in weight.parts}
        for part in range(parts):
            for cut in cuts_of(weight, spec, Shard(part, parts, exact=exact)):
                own = counts[cut.whole.name][cut.rows.start : cut.rows.stop]
                if cut.columns is not None:
                    own = own[:, cut.columns.start : cut.columns.stop]
                    by_columns.add(weight.field)
                assert own.shape == cut.part.shape
                own += 1
        on_all = weight.field.endswith(("norm", *ON_ALL)) or (
            not exact and weight.field in OF_HIDDEN and not weight.is_matrix
        )
        for count in counts.values():
            assert (count == (parts if on_all else 1)).all(), weight.field
    assert by_columns == (set() if exact else {"o", "down"})


@given(
    rows=st.integers(1, 40),
    width=st.integers(2, 300),
    ends=st.tuples(st.integers(0, 299), st.integers(1, 300)),
    before=st.integers(0, 5000),
    at_once=st.integers(1, 4000),
)
def test_columns_are_read_as_they_are_in_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    width: int,
    ends: tuple[int, int],
    before: int,
    at_once: int,
) -> None:
    first, last = sorted(end % width for end in ends)
    last += 1
    content = np.random.default_rng(rows).integers(0, 256, (rows, width), np.uint8)
    path = tmp_path_factory.getbasetemp() / "columns.bin"
    path.write_bytes(bytes(before) + content.tobytes() + b"behind")
    entry = TensorEntry(
        "columns", "U8", (rows, last - first), before + first, before + width * (rows - 1) + last,
        pitch=width,
    )  # fmt: skip
    wanted = content[:, first:last]
    assert (entry.row_bytes, entry.nbytes) == (last - first, wanted.size)
    read = [block.numpy().copy() for block in raw_blocks(mapped(path), entry, at_once)]
    assert np.concatenate(read).tobytes() == wanted.tobytes()
