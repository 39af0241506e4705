"""What `ci/peers` asks engines, and what it makes of their answers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer

from .peers import child, report, turns
from .peers.engines import ENGINES, FORMATS, PEERS
from .peers.shapes import SHAPES, make_checkpoint, needed_bytes, weights_of
from .peers.work import Answer, Request, agreement, figures, variety, works
from .peers.worker import DRIVERS, machine_seconds, own_seconds, peak_bytes

TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 300,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip


def test_every_engine_is_asked_the_same_and_no_repeat_what_an_earlier_one_was() -> None:
    for work in works():
        assert work.requests(1) == work.requests(1)
        assert work.requests(1) != work.requests(2)
        assert [len(request.prompt) for request in work.requests(1)] == list(work.lengths)


def test_prompts_have_ids_that_every_shape_has() -> None:
    least = min(config["vocab_size"] for config in SHAPES.values())
    for work in works():
        for request in work.requests(0):
            assert all(0 < token < least for token in request.prompt)


def test_sixteen_requests_are_of_16_lengths_and_a_quick_run_is_an_eighth() -> None:
    (mixed,) = (work for work in works() if work.name == "16 requests")
    assert len(set(mixed.lengths)) == 16
    assert (min(mixed.lengths), max(mixed.lengths)) == (64, 256)
    for work, quick in zip(works(), works(quick=True), strict=True):
        assert work.name == quick.name
        assert [length // 8 for length in work.lengths] == list(quick.lengths)


def test_rates_count_what_they_say() -> None:
    requests = [Request([1] * 30, 3), Request([1] * 10, 3)]
    answers = [Answer([5, 6, 7], 2.0, 4.0), Answer([5, 6, 7], 1.0, 2.0)]
    assert figures(requests, answers) == {"read": 20.0, "answered": 1.5, "decoded": 1.5}


def test_an_answer_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 tokens came, and 3 were asked for"):
        figures([Request([1], 3)], [Answer([5, 6], 1.0, 2.0)])


def test_answers_agree_up_to_their_first_difference() -> None:
    assert agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]) == pytest.approx(4 / 6)
    assert variety([[7, 7, 7], [7]]) == 0.25


def test_each_repeat_begins_with_another_engine() -> None:
    assert [turns.rotated(["a", "b", "c"], turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert turns.rotated([], 3) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_are_of_the_models_they_are_named_after(shape: str) -> None:
    numbers = sum(
        size[0] * (size[1] if len(size) > 1 else 1) for _, size, _, _ in weights_of(SHAPES[shape])
    )
    assert numbers == {"smollm2-135m": 134_515_008, "qwen3-0.6b": 596_049_920}[shape]


def test_what_is_needed_is_weights_and_keys_and_values() -> None:
    tiny = SHAPES["qwen3-0.6b"] | TINY
    matrices = 300 * 32 + 4 * 32 * 64 - 2 * 32 * 32 + 3 * 32 * 32
    assert needed_bytes(tiny, 8.5, 16, 0) == matrices * 17 // 16
    assert needed_bytes(tiny, 0, 16, 10) == 10 * 2 * 32 * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_runs_in_kvrt_and_transformers_alike(shape: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from kvrt.runtime import Runtime
    from kvrt.sampling import SamplingParams

    folder = make_checkpoint(SHAPES[shape] | TINY, tmp_path / "model")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("the").tokens == ["th", "e"]
    prompt = list(range(10, 40))
    with Runtime(folder, backend="cpu") as runtime:
        mine = runtime.generate([prompt], SamplingParams(max_tokens=12, ignore_eos=True))[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 30, dtype=torch.long),
            max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert list(mine.token_ids) == made[0, 30:].tolist()
    assert make_checkpoint(SHAPES[shape], folder) == folder, "what is there is left as it is"
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 300


def test_each_format_has_kvrt_and_each_engine_a_driver_and_a_path_of_its_own() -> None:
    assert set(PEERS) == set(DRIVERS)
    for format_ in FORMATS:
        assert "kvrt" in {engine.peer for engine in ENGINES if engine.format == format_}
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)
    for engine in ENGINES:
        layout = (engine.files, engine.weights)
        path = engine.path(Path("models"), "shape")
        for other in ENGINES:
            same = path == other.path(Path("models"), "shape")
            assert same == (layout == (other.files, other.weights))


def test_a_process_is_measured() -> None:
    before, mine = machine_seconds(), own_seconds()
    while own_seconds() - mine < 0.2:
        sum(range(10_000))
    assert machine_seconds() - before > 0.1
    assert peak_bytes() >= psutil.Process().memory_info().rss / 2


def test_a_worker_that_ends_or_fails_is_refused_with_the_reason(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        child.worker(Path(sys.executable), "kvrt", 1, log) as there,
    ):
        with pytest.raises(child.Refused, match="nowhere"):
            there.ask("load", path="/nowhere", options={})
        there._process.kill()
        with pytest.raises(child.Refused, match="its process ended with status -9"):
            there.ask("load", path="/nowhere", options={})


def test_nothing_that_a_process_started_outlives_it(tmp_path: Path) -> None:
    nested = "import subprocess; subprocess.run(['sleep', '600'])"
    command = [sys.executable, "-c", nested]
    with (tmp_path / "log").open("w") as log, child.started(command, log, {}) as process:
        whole = psutil.Process(process.pid)
        end = time.monotonic() + 60
        while not (inner := whole.children()) and time.monotonic() < end:
            time.sleep(0.01)
        assert inner
    psutil.wait_procs(inner, timeout=60)
    assert not inner[0].is_running() or inner[0].status() == psutil.STATUS_ZOMBIE


def test_a_command_that_fails_says_so_and_leaves_its_words(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        child.call([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log")
    assert "why" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_ends_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    worker = psutil.Process(int(run.stdout.readline()))
    run.send_signal(number)
    assert run.wait(60) != 0
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    run.stdout.close()


HANGING = """
import sys
from pathlib import Path
from tests.bench.peers import child

child.end_as_by_ctrl_c()
log = open(sys.argv[1] + "/log", "w")
with child.worker(Path(sys.executable), "kvrt", 1, log) as there:
    print(there._process.pid, flush=True)
    there._process.stdout.readline()
"""

PEAK = 700 << 20


def over(format_: str) -> str:
    """What the table says of it, of the largest work: 4,160 tokens."""
    needed = needed_bytes(SHAPES["smollm2-135m"], *FORMATS[format_], 4160)
    return f"700, {(PEAK - needed) / 2**20:.0f}"


def row(peer: str, format_: str, rate: float, **more: Any) -> turns.Row:
    cells = {
        work.name: {"rate": rate, "peak_bytes": PEAK, "foreign_cores": 0.0} for work in works()
    }
    return {"shape": "smollm2-135m", "engine": f"{peer} {format_}", "peer": peer, "format": format_,
            "versions": {peer: "1"}, "cells": cells, **more}  # fmt: skip


RUN = {"date": "2026-01-01", "machine": "m", "threads": 2, "commit": "c", "seconds": 60.0,
       "repeats": 3}  # fmt: skip


def test_the_page_sets_kvrt_beside_the_best_of_the_others(tmp_path: Path) -> None:
    rows = [row("kvrt", "bf16", 30.0), row("a", "bf16", 10.0), row("b", "bf16", 20.0),
            row("kvrt", "4 bit", 5.0)]  # fmt: skip
    data, page = report.write(RUN | {"rows": rows}, works(), tmp_path / "out", "name")
    lines = page.read_text().splitlines()
    assert "| bf16 | 1.50 (b) | 1.50 (b) | 1.50 (b) | 1.50 (b) |" in lines
    assert "| 4 bit | - | - | - | - |" in lines
    assert f"| kvrt bf16 | 30 | 30 | 30 | 30 | {over('bf16')} |" in lines
    assert json.loads(data.read_text())["rows"] == rows


def test_what_is_left_out_and_what_was_disturbed_is_said(tmp_path: Path) -> None:
    out = {
        "shape": "smollm2-135m",
        "engine": "a fp32",
        "peer": "a",
        "format": "fp32",
        "skipped": "why",
    }
    loud = row("kvrt", "fp32", 30.0)
    loud["cells"]["16 requests"]["foreign_cores"] = 0.5
    lines = report.page_of(RUN | {"rows": [loud, out]}, works())
    assert f"| kvrt fp32 | 30 | 30 | 30 * | 30 | {over('fp32')} |" in lines
    assert lines[-1] == "- smollm2-135m: a fp32: why"


def test_engines_of_float32_that_say_something_else_are_named() -> None:
    rows = [row("kvrt", "fp32", 1.0, agreement=1.0), row("a", "fp32", 1.0, agreement=0.5),
            row("b", "4 bit", 1.0, agreement=0.1)]  # fmt: skip
    assert report.disagreeing(rows) == [
        "smollm2-135m: a fp32: 50% of the tokens are those of the first engine, and 80% should be"
    ]
    assert report.unconfirmed(rows), "nobody says what the first one says"
    agreeing = row("c", "fp32", 1.0, agreement=0.9)
    assert not report.unconfirmed([*rows, agreeing])
    assert report.disagreeing(rows)[0] in "\n".join(report.page_of(RUN | {"rows": rows}, works()))
