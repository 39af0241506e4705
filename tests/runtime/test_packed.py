"""A runtime whose weights are codes says the same in whatever way, and names its pages for it."""

from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ConfigError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.packing import PackingDevice

from .conftest import Break, MakeRuntime

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
LENGTHS = (1, 18, 33, 5)
PROMPTS = [[(7 * n + 3 * i) % 199 for i in range(length)] for n, length in enumerate(LENGTHS)]


def said(runtime: Runtime) -> list[tuple[int, ...]]:
    """To all prompts at once."""
    streams = [runtime.stream(prompt, GREEDY) for prompt in PROMPTS]
    return [tuple(stream.wait().token_ids) for stream in streams]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("products", ["the device's own", "rounding", "exact"])
def test_greedy_text_is_the_same_alone_together_in_chunks_and_reused(
    products: str, make_runtime: MakeRuntime, break_device: Break
) -> None:
    if products != "the device's own":
        break_device(lambda device: PackingDevice(device, exact=products == "exact"))
    alone = make_runtime(quantize="int8", prefix_cache=False)
    right = [tuple(alone.stream(prompt, GREEDY).wait().token_ids) for prompt in PROMPTS]
    together = make_runtime(quantize="int8", max_batch_tokens=7)
    assert said(together) == right
    assert said(together) == right, "begun with pages that the first left"
    assert said(make_runtime(prefix_cache=False)) != right


@pytest.mark.promise("P21")
def test_pages_are_named_for_what_weights_are_and_how_they_are_multiplied(
    make_runtime: MakeRuntime, break_device: Break
) -> None:
    names = set()
    for exact in (False, True):
        break_device(lambda device, exact=exact: PackingDevice(device, exact=exact))
        for options in ({}, {"quantize": "int8"}):
            runtime = make_runtime(**options)
            names.add(runtime._worker.fingerprint)
    assert len(names) == 3


def test_a_device_without_such_products_refuses(tiny_lm: Path) -> None:
    options: dict[str, Any] = {"backend": "null", "load_format": "dummy", "quantize": "int8"}
    with pytest.raises(ConfigError, match="quantize int8: null has no products with such weights"):
        Runtime(tiny_lm, **options)


def test_quantised_weights_are_kept_where_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    own = tmp_path / "caches" / "kvrt" / "weights"
    texts = []
    for folder, notes in (
        (None, "were made for this start"),
        ("auto", f"are kept in {own}"),
        ("auto", f"were read from {own}"),
        (tmp_path / "mine", f"are kept in {tmp_path / 'mine'}"),
    ):
        with Runtime("tiny", backend="cpu", quantize="int8", quantized_dir=folder) as runtime:
            assert any(f"int8 weights {notes}" in note for note in runtime.model.notes)
            texts.append(runtime.generate("def main():", GREEDY)[0].text)
        assert own.exists() == (folder is not None)
    assert len(set(texts)) == 1
