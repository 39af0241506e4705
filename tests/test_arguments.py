"""Every argument that callers give is checked by a table: what is taken, and how it is refused."""

import ast
import dataclasses
import decimal
import fractions
import math
import re
from collections.abc import Iterator
from pathlib import Path

import kvrt_cli
import numpy as np
import pytest
import torch

import kvrt
from kvrt import RuntimeConfig, SamplingParams
from kvrt.checks import Checks, Maybe, Number, Whole, check_options, check_request
from kvrt.config import MAX_THREADS, OPTIONS
from kvrt.control import ADAPTER, SAVING, SHARE, SLEEP
from kvrt.engine.intake import STREAM
from kvrt.errors import ConfigError, KvrtError, RequestError
from kvrt.kv.index.shares import LARGEST_SHARE
from kvrt.runtime import LIMIT
from kvrt.sampling import PARAMS

SECRET = "my secret words"
BAD: list[object] = [
    math.nan, -math.inf, 1e308, -1e-300, -1.5, 1.5, 10**400, -(10**400), 2**64, -(2**80), SECRET,
    SECRET * 400, SECRET.encode(), bytearray(b"ab"), "", b"", "\0", "~no-such-user/x", True,
    [SECRET], [[1]], {SECRET: 1}, {1, 2}, object(), 1 + 2j, decimal.Decimal("0.5"),
    np.float32("nan"), np.bool_(True), np.array([1, 2]), np.array([[1, 2]]), np.array([True]),
    torch.tensor(True), torch.tensor([1.5]), [None], [True], [b"ab"], [10**400], ["a" * 1025],
    ["a"] * 65, [""], range(10**6), "9" * 31 + "TiB", "101%", "1e9",
]  # fmt: skip
TABLES: dict[str, tuple[Checks, type[KvrtError]]] = {
    "SamplingParams": (PARAMS, RequestError),
    "RuntimeConfig": (OPTIONS, ConfigError),
    "Runtime.stream": (STREAM, RequestError),
    "Runtime.set_memory_limit": (LIMIT, ConfigError),
    "Runtime.sleep": (SLEEP, ConfigError),
    "Runtime.load_adapter": (ADAPTER, ConfigError),
    "Runtime.save_cache": (SAVING, ConfigError),
    "Runtime.set_share": (SHARE, ConfigError),
}


@pytest.mark.parametrize("kind", [SamplingParams, RuntimeConfig])
def test_every_field_has_a_check(kind: type) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    assert list(TABLES[kind.__name__][0]) == names


@pytest.mark.promise("P41")
@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table, (checks, _) in TABLES.items() for name in checks]
)
def test_a_bad_value_is_refused_by_the_name_of_its_argument_and_never_quoted(
    table: str, name: str
) -> None:
    checks, kind = TABLES[table]
    check = check_request if kind is RequestError else check_options
    errors = []
    for value in BAD:
        try:
            check(checks, **{name: value})
        except kind as error:
            errors.append(error)
    assert len(errors) > len(BAD) // 2
    for error in errors:
        assert str(error).startswith(f"{name} ")
        assert getattr(error, "param", name) == name
        assert len(str(error)) < 300
        assert SECRET not in str(error) or kind is ConfigError, "names of options are shown"


@pytest.mark.parametrize("kind", [SamplingParams, RuntimeConfig])
def test_whatever_a_table_refuses_is_refused_where_it_is_given(kind: type) -> None:
    checks, error = TABLES[kind.__name__]
    check = check_request if error is RequestError else check_options
    for name in checks:
        for value in BAD:
            try:
                check(checks, **{name: value})
            except KvrtError as refused:
                with pytest.raises(error, match=re.escape(str(refused))):
                    kind(**{name: value})


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"max_tokens": np.int64(3)}, {"max_tokens": 3}),
        ({"top_k": np.uint8(4)}, {"top_k": 4}),
        ({"n": torch.tensor(2)}, {"n": 2}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": np.int8(1)}, {"temperature": 1.0}),
        ({"top_p": fractions.Fraction(1, 2)}, {"top_p": 0.5}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ("a", "b")}, {"stop": ("a", "b")}),
        ({"stop_token_ids": np.array([5, 6])}, {"stop_token_ids": (5, 6)}),
        ({"stop_token_ids": torch.tensor([5, 6])}, {"stop_token_ids": (5, 6)}),
        ({"stop_token_ids": range(3)}, {"stop_token_ids": (0, 1, 2)}),
    ],
    ids=repr,
)
def test_numbers_of_any_library_become_pythons(
    given: dict[str, object], taken: dict[str, object]
) -> None:
    params = SamplingParams(**given)  # type: ignore[arg-type]
    for name, value in taken.items():
        found = getattr(params, name)
        assert found == value
        assert repr(found) == repr(value), "numpy's would show"


def test_numbers_within_their_bounds_are_taken_and_those_just_outside_are_not() -> None:
    bounds: dict[str, tuple[list[float], list[float]]] = {
        "temperature": ([0.0, 5e-324, 100], [-5e-324, 100.00001]),
        "repetition_penalty": ([0.01, 100], [0.0099, 0, 1e-300, 101]),
        "top_p": ([5e-324, 1], [0, 1.0000001]),
        "presence_penalty": ([-100, 100], [-101, 101]),
        "seed": ([0, 2**64 - 1], [-1, 2**64]),
        "stop_token_ids": ([], [-1]),
    }
    for name, (good, bad) in bounds.items():
        for value in good:
            assert getattr(SamplingParams(**{name: value}), name) == value  # type: ignore[arg-type]
        for value in bad:
            with pytest.raises(RequestError, match=name):
                SamplingParams(**{name: value})  # type: ignore[arg-type]


INT32, INT64 = 2**31 - 1, 2**63 - 1
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "Runtime.set_share": {"weight": (1, LARGEST_SHARE)},
    "SamplingParams": {
        "max_tokens": (0, INT32), "min_tokens": (0, INT32), "temperature": (0, 100),
        "top_k": (-1, INT32), "top_p": (5e-324, 1), "min_p": (0, 1),
        "repetition_penalty": (0.01, 100), "presence_penalty": (-100, 100),
        "frequency_penalty": (-100, 100), "seed": (0, 2**64 - 1), "logprobs": (0, 100),
        "prompt_logprobs": (0, 100), "n": (1, 128), "speculate": (0, 64), "beam_width": (1, 64),
        "length_penalty": (-10, 10),
    },
    "RuntimeConfig": {
        "device": (0, INT32), "max_model_len": (2, INT32), "page_size": (1, 1024),
        "keep_warm": (0, 2**62), "max_batch_tokens": (1, INT32), "max_running": (1, INT32),
        "prefix_cache_ttl": (0, math.inf), "threads": (1, MAX_THREADS),
        "max_images": (0, 1024), "seed": (0, 2**64 - 1), "tensor_parallel": (1, 64),
        "pipeline_parallel": (1, 64), "nodes": (1, 64), "rank_timeout": (0.1, 86400),
    },
    "Runtime.stream": {"priority": (-INT64 - 1, INT64)},
    "Runtime.set_memory_limit": {"revision": (-INT64 - 1, INT64)},
    "Runtime.sleep": {"level": (1, 2)},
    "Runtime.load_adapter": {},
    "Runtime.save_cache": {"compress": (-100, 22)},
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_every_number_is_taken_within_its_range_and_refused_beyond_either_end(table: str) -> None:
    checks, kind = TABLES[table]
    check = check_request if kind is RequestError else check_options
    inner = {name: each.check if isinstance(each, Maybe) else each for name, each in checks.items()}
    ranged = {name: each for name, each in inner.items() if isinstance(each, Whole | Number)}
    assert ranged.keys() == RANGES[table].keys()
    for name, (low, high) in RANGES[table].items():
        for good in (low, high):
            assert check(checks, **{name: good})[name] == good
        whole = isinstance(ranged[name], Whole)
        below = low - 1 if whole else math.nextafter(low, -math.inf)
        above = high + 1 if whole else math.nextafter(high, math.inf)
        for bad in {below, above} - {math.inf}:
            with pytest.raises(kind, match=name):
                check(checks, **{name: bad})


def test_lists_and_texts_are_as_long_as_they_may_be_and_no_longer() -> None:
    most: dict[str, list[object]] = {
        "stop": ["a" * 1024, ["a"] * 64],
        "bad_words": ["a" * 1024, ["a"] * 64],
        "stop_token_ids": [range(INT32 - 1023, INT32 + 1)],
        "logit_bias": [{n: -100.0 + n % 201 for n in range(1024)}, [("2147483647", 1.0)]],
    }
    for name, values in most.items():
        for value in values:
            assert check_request(PARAMS, **{name: value})[name]
    for name, value in {
        "stop": ["a"] * 65, "bad_words": "a" * 1025, "stop_token_ids": range(1025),
        "logit_bias": dict.fromkeys(range(1025), 1.0),
    }.items():  # fmt: skip
        with pytest.raises(RequestError, match=name):
            check_request(PARAMS, **{name: value})
    for size in (1, 2**62 - 1, "1B"):
        assert check_options(LIMIT, limit=size)["limit"] == size
    for size in (0, 2**62):
        with pytest.raises(ConfigError, match="limit"):
            check_options(LIMIT, limit=size)


@pytest.mark.parametrize(
    ("options", "words", "fix"),
    [
        ({"memory_limit": 1e9}, "memory_limit is 1000000000.0", "1000000000"),
        ({"memory_limit": "much"}, "memory_limit is 'much'; it must be a size", ""),
        ({"dtype": "int3"}, "dtype is 'int3'", "bfloat16"),
        ({"threads": 40_000}, "threads is 40000", ""),
        ({"page_size": 10**6}, "page_size is 1000000", ""),
        ({"seed": "x"}, "seed is a str", ""),
        ({"offload": 5}, "offload is 5", ""),
        ({"cache_dir": "~nouserxyz/a"}, "cache_dir begins with the home", ""),
        ({"prefix_cache_ttl": math.nan}, "prefix_cache_ttl is nan", ""),
        ({"offline": "no"}, "offline is a str", ""),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_is_refused_with_the_way_to_write_it(
    options: dict[str, object], words: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(words)
    assert fix in caught.value.fix


def test_options_become_what_the_runtime_works_with() -> None:
    config = RuntimeConfig(
        memory_limit=np.int64(10**9),  # type: ignore[arg-type]
        cache_dir="~/pages",
        prefix_cache_ttl=1,
        threads=torch.tensor(2),  # type: ignore[arg-type]
    )
    assert type(config.memory_limit) is int
    assert config.cache_dir == Path("~/pages").expanduser()
    assert type(config.prefix_cache_ttl) is float
    assert config.threads == 2
    assert RuntimeConfig(memory_limit="50%").memory_limit == "50%"


def _of_errors(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Where an error is made: the field that is at fault, and what is written of the message."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            param = next((word.value for word in call.keywords if word.arg == "param"), None)
            texts = [
                part.value
                for argument in call.args
                for part in ast.walk(argument)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            if isinstance(param, ast.Constant) and texts:
                yield call, param.value, "".join(texts)


def test_a_field_that_an_error_says_is_at_fault_is_named_by_its_message() -> None:
    """A client may show nothing but the message. Fields that are plain words may be paraphrased."""
    folders = (Path(kvrt.__file__).parent, Path(kvrt_cli.__file__).parent)
    found = [
        (f"{path}:{call.lineno}", param, said)
        for folder in folders
        for path in folder.rglob("*.py")
        for call, param, said in _of_errors(path)
        if "_" in param
    ]
    assert len(found) > 10
    assert not [place for place, param, said in found if param not in said]
