"""Pages are found by everything that their keys and values depend on, and by nothing else.

A runtime leaves pages in a folder. One that differs in a single thing finds none of them there, and
says what it would have said without; and whichever of these things is left out of the name, one of
the differences is not seen.
"""

import dataclasses
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

import kvrt.engine.fingerprint
import kvrt.model.checkpoint.filling
import kvrt.model.loader
from kvrt.errors import StoreError
from kvrt.kv.tiers.folder import own_folder
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.wrappers.wrapper import Wrapper
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.damage import WEIGHTS, read_file, write_file

from .conftest import Break

PROMPT = [n % 251 for n in range(150)]
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)

Options = dict[str, Any]
DTYPE: Options = {"dtype": "float32", "kv_cache_dtype": "bfloat16"}
"""Each dtype but those that are stored, which the files have."""


class World(NamedTuple):
    """What a test may change before it opens the second runtime."""

    folder: Path  # the model's
    patch: pytest.MonkeyPatch
    break_device: Break


def configured(**changes: object) -> Callable[[World], Options]:
    def change(world: World) -> Options:
        path = world.folder / "config.json"
        config = json.loads(path.read_text())
        assert config | changes != config
        path.write_text(json.dumps(config | changes))
        return {}

    return change


def asked(**options: object) -> Callable[[World], Options]:
    return lambda world: options


def one_byte(world: World) -> Options:
    """In the middle of one tensor, the lowest of a number's bits."""
    entries, data = read_file(world.folder / WEIGHTS)
    start, end = entries["model.layers.1.self_attn.k_proj.weight"]["data_offsets"]
    changed = bytearray(data)
    changed[(start + end) // 4 * 2] ^= 1
    write_file(world.folder / WEIGHTS, json.dumps(entries), bytes(changed))
    return {}


def stored_dtype(world: World) -> Options:
    """The same bytes are other numbers."""
    entries, data = read_file(world.folder / WEIGHTS)
    write_file(world.folder / WEIGHTS, json.dumps(entries).replace('"F16"', '"BF16"'), data)
    return {}


def another_device(**changes: object) -> Callable[[World], Options]:
    class Other(Wrapper):
        @property
        def info(self) -> Any:
            return dataclasses.replace(self.inner.info, **changes)  # type: ignore[arg-type]

    def change(world: World) -> Options:
        world.break_device(lambda device: Other(device))
        return {}

    return change


def another_version(world: World) -> Options:
    world.patch.setattr(kvrt.engine.fingerprint, "version", lambda name: "0.0.1")
    return {}


def another_torch(world: World) -> Options:
    world.patch.setattr(torch, "__version__", "2.0.0")
    return {}


def kernels_of_another_version(world: World) -> Options:
    real = kvrt.engine.fingerprint.candidates
    renewed = [dataclasses.replace(one, version="99") for one in real()]
    world.patch.setattr(kvrt.engine.fingerprint, "candidates", lambda: renewed)
    return {}


DIFFERENCES: dict[str, Callable[[World], Options]] = {
    "one byte of the weights": one_byte,
    "the dtype of the stored weights": stored_dtype,
    "the dtype of the weights as computed with": asked(dtype="bfloat16"),
    "the format of keys and values": asked(kv_cache_dtype="float16"),
    "codes instead of numbers": asked(kv_cache_dtype="int8"),
    "codes instead of weights": asked(quantize="int8"),
    "the tokens of a page": asked(page_size=8),
    "the base of the rotation": configured(
        rope_parameters={"rope_type": "default", "rope_theta": 9999.0}
    ),
    "how the rotation is stretched": configured(
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "the window": configured(sliding_window=77),
    "the epsilon of norms": configured(rms_norm_eps=2e-5),
    "the activation": configured(hidden_act="gelu_new"),
    "random weights": asked(load_format="dummy"),
    "the instruction set": another_device(arch="another"),
    "the backend": another_device(backend="another"),
    "the version of kvrt": another_version,
    "the version of torch": another_torch,
    "the version of the kernels": kernels_of_another_version,
}


def none(world: World) -> Options:
    return {}


def sharded(world: World) -> Options:
    model = make_model("mistral", sliding_window=64)
    shutil.rmtree(world.folder)
    save_model(model, world.folder, dtype=torch.float16, shard="100KB")
    assert not (world.folder / WEIGHTS).exists()
    save_tokenizer(world.folder)
    return {}


SAME = {
    "nothing": none,
    "how the weights are spread over files": sharded,
    "a field of the configuration that nobody reads": configured(transformers_version="9.9"),
    "what may run": asked(memory_limit="128MiB", max_running=3, max_batch_tokens=50, threads=1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(make_model("mistral", sliding_window=64), folder, dtype=torch.float16)
    return save_tokenizer(folder)


@pytest.fixture(scope="module")
def left(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages of a prompt."""
    folder = tmp_path_factory.mktemp("left")
    with opened(model, DTYPE | {"cache_dir": folder}) as runtime:
        ask(runtime)
    return folder


@pytest.fixture
def world(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_device: Break
) -> World:
    shutil.copytree(model, tmp_path / "model")
    return World(tmp_path / "model", monkeypatch, break_device)


def opened(model: Path, options: Options) -> Runtime:
    return Runtime(model, **{"backend": "cpu", "memory_limit": "64MiB", "seed": 1} | options)


def ask(runtime: Runtime) -> Result:
    result = runtime.stream(PROMPT, GREEDY).wait()
    assert result.error is None
    return result


def name_of(world: World, options: Options) -> bytes:
    with opened(world.folder, DTYPE | options) as runtime:
        return runtime._worker.fingerprint


@pytest.mark.promise("P21")
@pytest.mark.promise("P31")
@pytest.mark.parametrize("what", DIFFERENCES)
def test_pages_that_differ_in_one_thing_are_not_taken(
    what: str, world: World, left: Path, tmp_path: Path
) -> None:
    options = DTYPE | DIFFERENCES[what](world)
    folder = shutil.copytree(left, tmp_path / "left")
    (theirs,) = folder.iterdir()
    with opened(world.folder, options | {"prefix_cache": False}) as cold:
        right = ask(cold)
    with opened(world.folder, options | {"cache_dir": folder}) as runtime:
        with pytest.raises(StoreError) as refused:
            runtime.load_cache(theirs)
        assert refused.value.reason == "foreign"
        answer = ask(runtime)
    assert answer.usage.cached_tokens == 0
    assert answer.token_ids == right.token_ids
    assert {path.name for path in folder.iterdir()} > {theirs.name}, "each has a folder of its own"


@pytest.mark.parametrize("what", SAME)
def test_what_pages_do_not_depend_on_is_not_in_their_names(
    what: str, world: World, left: Path, tmp_path: Path
) -> None:
    options = DTYPE | SAME[what](world)
    folder = shutil.copytree(left, tmp_path / "left")
    with opened(world.folder, options | {"cache_dir": folder}) as runtime:
        assert folder.joinpath(own_folder(folder, runtime._worker.fingerprint)).exists()
        assert ask(runtime).usage.cached_tokens == len(PROMPT) // 16 * 16


@pytest.mark.promise("P21")
def test_random_weights_have_the_name_of_their_seed_and_shape(world: World) -> None:
    names = {
        name_of(world, {"load_format": "dummy", "seed": 1}),
        name_of(world, {"load_format": "dummy", "seed": 2}),
        name_of(world, {"load_format": "dummy", "seed": 1, "dtype": "bfloat16"}),
        name_of(world, configured(num_hidden_layers=2)(world) | {"load_format": "dummy"}),
    }
    assert len(names) == 4


class Mutant(NamedTuple):
    """A function with one part of the name left out, and a difference that it does not see."""

    module: ModuleType
    function: str
    old: str
    new: str
    unseen: str


MUTANTS = {
    "weight bytes": Mutant(
        kvrt.model.checkpoint.filling,
        "fingerprint",
        ", digests[name]",
        "",
        "one byte of the weights",
    ),
    "most of the weight bytes": Mutant(
        kvrt.model.checkpoint.filling,
        "_copy",
        "raw.numpy()",
        "raw.numpy()[:4096]",
        "one byte of the weights",
    ),
    "stored dtype": Mutant(
        kvrt.model.checkpoint.filling,
        "fingerprint",
        "entry.dtype, ",
        "",
        "the dtype of the stored weights",
    ),
    "weights": Mutant(
        kvrt.model.loader, "load_model", "{chosen} {stored}", "{chosen}", "random weights"
    ),
    "dtype": Mutant(
        kvrt.model.loader,
        "load_model",
        "{chosen} {stored}",
        "{stored}",
        "the dtype of the weights as computed with",
    ),
    "configuration": Mutant(
        kvrt.model.loader, "load_model", "{spec} {chosen}", "{chosen}", "the window"
    ),
    "KV format": Mutant(
        kvrt.engine.fingerprint,
        "page_fingerprint",
        "str(layouts[0].format), repr(layouts)",
        '"", ""',
        "the format of keys and values",
    ),
    "backend": Mutant(
        kvrt.engine.fingerprint,
        "page_fingerprint",
        "info.backend, info.arch, kernels, ",
        "info.arch, ",
        "the backend",
    ),
    "arch": Mutant(
        kvrt.engine.fingerprint, "page_fingerprint", "info.arch, ", "", "the instruction set"
    ),
    "kernels": Mutant(
        kvrt.engine.fingerprint, "page_fingerprint", "kernels, ", "", "the version of the kernels"
    ),
    "version": Mutant(
        kvrt.engine.fingerprint, "page_fingerprint", 'version("kvrt"), ', "", "the version of kvrt"
    ),
    "torch": Mutant(
        kvrt.engine.fingerprint,
        "page_fingerprint",
        ", torch.__version__",
        "",
        "the version of torch",
    ),
}


@pytest.mark.promise("P21")
@pytest.mark.parametrize("part", MUTANTS)
def test_a_name_without_one_of_its_parts_is_found_out(part: str, world: World) -> None:
    mutant = MUTANTS[part]
    real = getattr(mutant.module, mutant.function)
    source = textwrap.dedent(inspect.getsource(real))
    assert source.count(mutant.old) == 1
    scope: dict[str, object] = {}
    exec(source.replace(mutant.old, mutant.new), vars(mutant.module).copy(), scope)
    before = name_of(world, {})
    for module in [module for name, module in sys.modules.items() if name.startswith("kvrt")]:
        for name, value in list(vars(module).items()):
            if value is real:
                world.patch.setattr(module, name, scope[mutant.function])
    without = name_of(world, {})
    assert without != before, "it is part of the name"
    assert name_of(world, DIFFERENCES[mutant.unseen](world)) == without, "and without it, unseen"
