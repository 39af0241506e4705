"""vLLM itself with kvrt's connector, beside vLLM as it is: run by ``ci/vllm``, which says where a
Python is that has both (``PYTHON_WITH_VLLM``)."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from kvrt.kv.tiers.files import DATA
from kvrt.sharing.ledger import Row
from kvrt.sharing.orders import Outcome, Verb, post
from kvrt.sharing.tenant import figures_of, tenants_of
from tests.integrations.test_events import RECORDED
from tests.model.checkpoints import make_model, save_model

PYTHON = os.environ.get("PYTHON_WITH_VLLM", "")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_VLLM names none: see ci/vllm"),
]

ENGINE = Path(__file__).with_name("vllm_engine.py")
ROUNDS = [[2, 300, 0], [8, 700, 1], [8, 700, 1], [1, 300, 0], [2, 1500, 2]]
MIB = 1 << 20
KV = 512 * MIB


@dataclass
class Engine:
    process: "subprocess.Popen[str]"
    loaded: dict[str, Any]

    def ask(self, rounds: list[list[int]]) -> None:
        """So many prompts of so many tokens, drawn by that seed, in each round."""
        assert self.process.stdin is not None
        self.process.stdin.writelines(f"{json.dumps(each)}\n" for each in rounds)
        self.process.stdin.flush()

    def answers(self, rounds: int = len(ROUNDS)) -> list[dict[str, Any]]:
        return [next_line(self.process) for _ in range(rounds)]

    def kill(self) -> None:
        for pid in [self.process.pid, *self.loaded["pids"]]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def next_line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    pytest.fail(f"vLLM ended with {process.wait()}")


def elastic(**options: object) -> dict[str, Any]:
    return {
        "kv_connector": "ElasticConnector",
        "kv_connector_module_path": "kvrt.integrations.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": options,
    }


def tiers(text: str) -> dict[str, Any]:
    options = {"spec_name": "TierSpec", "spec_module_path": "kvrt.integrations.vllm", "tiers": text}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": options,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose greedy answers hardly repeat themselves; a block of 128 tokens is 1 MiB."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    more = {"num_hidden_layers": 4, "vocab_size": 1000, "max_position_embeddings": 4096}
    return save_model(make_model("llama-2", **shape, **more), tmp_path_factory.mktemp("model"))


@contextmanager
def engine(
    model: Path, connector: dict[str, Any] | None, folder: Path, **environ: str
) -> Iterator[Engine]:
    options: dict[str, Any] = {"kv_cache_memory_bytes": KV, "kv_transfer_config": connector}
    with (folder / f"log.{len(list(folder.iterdir()))}").open("w") as log:
        started = subprocess.Popen(
            [PYTHON, str(ENGINE), str(model), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **environ, "KVRT_SHARE_DIR": str(folder / "shares")},
        )  # fmt: skip
        with started as process:
            one = Engine(process, {"pids": []})
            try:
                one.loaded = next_line(process)
                yield one
            finally:
                one.kill()


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM as it is says, and takes."""
    with engine(model, None, tmp_path_factory.mktemp("plain")) as one:
        one.ask(ROUNDS)
        return {"loaded": one.loaded["loaded"], "answers": one.answers()}


def tokens(answers: list[dict[str, Any]]) -> list[object]:
    return [answer["tokens"] for answer in answers]


class Watch:
    """The most that tenants held together, and each for itself, as their ledger says."""

    def __init__(self, path: Path) -> None:
        self.path, self.most, self.each = path, 0, dict[int, int]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def rows(self) -> list[Row]:
        return tenants_of(self.path)[1]

    def _look(self) -> None:
        while not self._stop.wait(0.003):
            rows = self.rows()
            self.most = max(self.most, sum(row.claim.held for row in rows))
            for row in rows:
                self.each[row.pid] = max(self.each.get(row.pid, 0), row.claim.held)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def test_all_tokens_are_those_of_vllm_as_it_is_and_memory_comes_and_goes(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "shares").mkdir(mode=0o700)
    with engine(model, elastic(share="all:512MiB", linger=0), tmp_path) as one:
        watch = Watch(tmp_path / "shares" / "all.cpu0")
        (start,) = watch.rows()
        one.ask(ROUNDS)
        answers = one.answers()
        deadline = time.monotonic() + 60
        while (end := watch.rows()[0]).claim.held > start.claim.held:
            assert time.monotonic() < deadline
        watch.end()
    assert tokens(answers) == tokens(plain["answers"])
    metrics = answers[-1]["metrics"]
    assert metrics["kvrt:kv_mapped_blocks_total"] > metrics["kvrt:kv_unmapped_blocks_total"] > 0
    assert metrics["kvrt:kv_limit_bytes"] == KV
    assert 0 < metrics["kvrt:kv_held_bytes"] <= watch.most
    assert one.loaded["loaded"] < plain["loaded"] - KV * 0.8
    assert start.claim.held < watch.most < KV / 4
    print(
        f"loaded {one.loaded['loaded'] / MIB:.0f} MiB, as it is {plain['loaded'] / MIB:.0f};"
        f" KV idle {end.claim.held / MIB:.0f} MiB, at the peak {watch.most / MIB:.0f}"
    )


def test_what_may_stay_is_found_again(model: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    with engine(model, elastic(keep="256MiB", linger=0), tmp_path) as one:
        one.ask(ROUNDS)
        answers = one.answers()
    assert tokens(answers) == tokens(plain["answers"])
    cached = [answer["cached"] for answer in answers]
    assert cached == [answer["cached"] for answer in plain["answers"]]
    assert cached[2] > 0


def test_under_a_limit_requests_wait_and_none_is_lost(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    with engine(model, elastic(memory_limit="24MiB", linger=0), tmp_path) as one:
        one.ask(ROUNDS)
        answers = one.answers()
    assert tokens(answers) == tokens(plain["answers"])


def test_two_engines_keep_within_one_budget_and_one_outlives_the_other(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "shares").mkdir(mode=0o700)
    both = elastic(share="two:40MiB")
    with ExitStack() as stack:
        engines = [stack.enter_context(engine(model, both, tmp_path)) for _ in range(2)]
        watch = Watch(tmp_path / "shares" / "two.cpu0")
        assert len(watch.rows()) == 2
        for one, more in zip(engines, (1, 20), strict=True):
            one.ask(ROUNDS + ROUNDS * more)
        found = [one.answers() for one in engines]
        assert [tokens(answers) for answers in found] == [tokens(plain["answers"])] * 2
        engines[1].kill()
        assert tokens(engines[0].answers()) == tokens(plain["answers"])
        watch.end()
        assert len(watch.rows()) == 1
    assert watch.most <= 40 * MIB
    assert min(watch.each.values()) >= 16 * MIB
    print(f"together at most {watch.most / MIB:.0f} MiB of 40")


def test_a_limit_is_changed_from_outside_and_people_see_what_an_engine_does(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    shares = tmp_path / "shares"
    shares.mkdir(mode=0o700)
    with engine(model, elastic(share="all:512MiB", linger=0), tmp_path) as one:
        path = shares / "all.cpu0"
        assert post(path, model.name, Verb.LIMIT, 24 * MIB).outcome is Outcome.APPLIED  # idle
        refused = post(path, model.name, Verb.LIMIT, 4 * MIB)
        assert refused.outcome is Outcome.REFUSED
        assert "longest request" in refused.text
        watch = Watch(path)
        one.ask(ROUNDS * 2)
        answers = one.answers()
        assert post(path, model.name, Verb.LIMIT, 256 * MIB).outcome is Outcome.APPLIED  # busy
        most, again = watch.most, one.answers()
        assert post(path, model.name, Verb.RECLAIM).outcome in {Outcome.APPLIED, Outcome.DEFERRED}
        assert post(path, model.name, Verb.SLEEP, 1).outcome is Outcome.REFUSED
        watch.end()
        ((_, figures),) = figures_of(path)[1]
    assert tokens(answers) == tokens(again) == tokens(plain["answers"])
    assert most <= 24 * MIB
    assert figures.prompt == 2 * sum(count * length for count, length, _ in ROUNDS)
    assert figures.tokens == 2 * 24 * sum(count for count, *_ in ROUNDS)


def test_throughput_is_that_of_vllm_as_it_is(model: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        both = []
        for name, connector in {"plain": None, "elastic": elastic()}.items():
            (folder := tmp_path / name).mkdir()
            both.append(stack.enter_context(engine(model, connector, folder)))
        ratios: dict[str, list[float]] = {"seconds": [], "computed": []}
        for turn in range(12):
            took = []
            for one in both if turn % 2 else both[::-1]:
                one.ask([[8, 600, 100 * turn + number] for number in range(5)])
                took.append(one.answers(5)[1:])  # in the first one, memory comes
            took = took if turn % 2 else took[::-1]
            for name, found in ratios.items():
                plain, with_it = (sum(each[name] for each in rounds) for rounds in took)
                found.append(plain / with_it)
    found = {name: median(each[2:]) for name, each in ratios.items()}
    print(f"throughput: {found['seconds']:.3f}x, by processor time {found['computed']:.3f}x")
    assert found["computed"] > 0.85
    assert found["seconds"] > 0.7  # of a busy machine


def cached(answers: list[dict[str, Any]]) -> list[int]:
    return [answer["cached"] for answer in answers]


def test_blocks_on_disk_outlive_the_engine_and_damaged_ones_are_computed_again(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    found = []
    for _ in range(3):
        with engine(model, tiers(f"disk:{tmp_path / 'kept'}:1GiB"), tmp_path / "logs") as one:
            one.ask(ROUNDS)
            found.append(one.answers())
        assert tokens(found[-1]) == tokens(plain["answers"])
        (data,) = tmp_path.glob(f"kept/*/{DATA}")
        if len(found) == 2:
            raw = bytearray(data.read_bytes())
            for at in range(0, len(raw), MIB):  # once in every other block, about
                raw[at] ^= at // MIB % 2
            data.write_bytes(raw)
    first, second, third = map(cached, found)
    assert first[0] == 0
    assert second[:3] == [2 * 256, 8 * 640, 8 * 640]
    assert second[4] == 2 * 1408
    assert 0 < sum(third[:2]) < sum(second[:2])
    metrics = found[1][-1]["metrics"]
    assert metrics["kvrt:offload_from_disk_total"] > 0
    assert found[2][-1]["metrics"]["kvrt:offload_lost_total"] > 0
    print(f"tokens found in the first round: {first[0]}, {second[0]}, and {third[0]} of damaged")


def test_memory_goes_and_what_was_cached_in_it_is_found_in_host_memory(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "shares").mkdir(mode=0o700)
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "connectors": [
                tiers("host:256MiB"),
                elastic(share="all:512MiB", linger=0, beside_tiers=True),
            ]
        },
    }
    with engine(model, both, tmp_path) as one:
        watch = Watch(tmp_path / "shares" / "all.cpu0")
        (start,) = watch.rows()
        answers = []
        for each in ROUNDS * 2:
            one.ask([each])
            answers += one.answers(1)
            deadline = time.monotonic() + 60
            while watch.rows()[0].claim.held > start.claim.held:
                assert time.monotonic() < deadline
        watch.end()
    assert tokens(answers) == tokens(plain["answers"]) * 2
    assert cached(answers)[5:] == [2 * 256, 8 * 640, 8 * 640, 256, 2 * 1408]
    assert cached(answers)[2] == 8 * 640  # the device held nothing when they were asked for
    assert start.claim.held < watch.most < KV / 4


def test_kvrts_attention_says_the_same_and_keeps_the_layers_of_a_block_together(
    model: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "shares").mkdir(mode=0o700)
    share = elastic(share="all:512MiB", linger=0)
    with engine(model, share, tmp_path, KVRT_VLLM_ATTENTION="1") as one:
        watch = Watch(tmp_path / "shares" / "all.cpu0")
        (start,) = watch.rows()
        one.ask(ROUNDS)
        answers = one.answers()
        watch.end()
    assert tokens(answers) == tokens(plain["answers"])
    assert start.claim.held == 2 * MIB  # one chunk, not one for each layer
    print(f"KV idle {start.claim.held / MIB:.0f} MiB, at the peak {watch.most / MIB:.0f}")


def test_vllms_own_classes_read_kvrts_events(tmp_path: Path) -> None:
    program = (
        "import sys, msgspec; from vllm.distributed.kv_events import KVEventBatch;"
        "batch = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=KVEventBatch);"
        "print(batch.ts, batch.data_parallel_rank, *batch.events, sep='\\n')"
    )
    done = subprocess.run(
        [PYTHON, "-c", program], input=RECORDED, capture_output=True, check=True, timeout=300
    )
    said = done.stdout.decode().splitlines()[-6:]
    assert said[:2] == ["1.5", "0"]
    assert [line.partition("(")[0] for line in said[2:]] == [
        "BlockStored", "BlockStored", "BlockRemoved", "AllBlocksCleared"
    ]  # fmt: skip
