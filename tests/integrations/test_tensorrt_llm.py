"""kvrt's pages behind TensorRT-LLM's interface for connectors. Its package imports nowhere without
a GPU, so an engine stands in for it that calls both halves as its published source does."""

import json
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt import ConfigError
from kvrt.errors import IntegrityError
from kvrt.integrations.tensorrt_llm.blocks import Running, block_names
from kvrt.kv.tiers.files import DATA

SIZE = 4
"""Tokens in a block."""

SHAPE = (2, 2, 3, SIZE)
"""Of a block: layers, keys and values, heads, tokens."""


@dataclass
class Data:
    """`RequestData`: what a pass says of a request."""

    request_id: int
    new_tokens: list[int]
    new_block_ids: list[int]
    computed_position: int
    num_scheduled_tokens: int


@dataclass
class Output:
    """`SchedulerOutput`."""

    new_requests: list[Data] = field(default_factory=list)
    cached_requests: list[Data] = field(default_factory=list)


@dataclass
class Request:
    """What a connector looks at of an `LlmRequest`."""

    request_id: int
    tokens: list[int]

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return self.tokens


class Stream:
    """A processor's: all that was begun is done."""

    def synchronize(self) -> None:
        pass


class Half:
    """Both base classes, as far as they do something."""

    def __init__(self, llm_args: Any) -> None:
        self._llm_args = llm_args
        self._metadata: object = None

    def bind_connector_meta(self, metadata: object) -> None:
        self._metadata = metadata

    def get_connector_meta(self) -> object:
        return self._metadata


def content(tokens: Sequence[int]) -> float:
    """What a token's keys and values are: of all tokens up to it."""
    return float(zlib.crc32(bytes(tokens)) % (1 << 20))


class Engine:
    """A cache of one pool and its passes, of one request at a time.

    Args:
        halves: the module with both classes.
        args: of the engine.
        dtype: of the cache.
        counts_loaded: whether what was loaded counts as computed in a request's first pass.
    """

    def __init__(
        self, halves: Any, args: Any, dtype: torch.dtype, *, counts_loaded: bool = False
    ) -> None:
        self.worker, self.scheduler = halves.PageWorker(args), halves.PageScheduler(args)
        self.pool = torch.zeros((64, *SHAPE), dtype=dtype)
        self.worker.register_kv_caches(self.pool)
        self.counts_loaded = counts_loaded
        self.free = [*range(63, -1, -1)]
        self.ids = 0

    def run(
        self,
        prompt: list[int],
        new: int = 5,
        *,
        chunk: int = 100,
        local: int = 0,
        own: dict[str, object] | None = None,
    ) -> int:
        """Answer a prompt, and check what each pass finds. Returns the tokens loaded.

        Args:
            chunk: tokens of a pass, at most.
            local: tokens that the engine has still in its cache.
            own: further fields of the request.
        """
        self.ids += 1
        request = Request(self.ids, [*prompt])
        vars(request).update(own or {})
        self.pool.random_(5)
        loaded, later = self.scheduler.get_num_new_matched_tokens(request, local)
        assert not later
        assert local + loaded < len(prompt), "a pass has something to compute"
        blocks = [self.free.pop() for _ in range(0, len(prompt), SIZE)]
        self.scheduler.update_state_after_alloc(request, blocks)
        self._compute(request, blocks, 0, local)
        done, told = local + loaded, (0, 0)  # tokens and blocks that were told of
        while len(request.tokens) < len(prompt) + new:
            if len(request.tokens) > len(blocks) * SIZE:
                blocks.append(self.free.pop())
            count = min(chunk, len(request.tokens) - done)
            tokens, own = request.tokens[told[0] :], blocks[told[1] :]
            first = told == (0, 0)
            computed = done - loaded if first and not self.counts_loaded else done
            data = Data(request.request_id, tokens, own, computed, count)
            output = Output([data], []) if first else Output([], [data])
            told = len(request.tokens), len(blocks)
            self._pass(output, request, blocks, done, count)
            done += count
            if done == len(request.tokens):
                request.tokens.append(sum(request.tokens) % 200)
        assert not self.scheduler.request_finished(request, blocks)
        self.free += blocks
        return int(loaded)

    def _pass(
        self, output: Output, request: Request, blocks: list[int], done: int, count: int
    ) -> None:
        self.worker.bind_connector_meta(self.scheduler.build_connector_meta(output))
        self.worker.start_load_kv(Stream())
        for at in range(done):
            self.worker.wait_for_layer_load(0, Stream())
            found = self.pool[blocks[at // SIZE], ..., at % SIZE]
            assert (found == content(request.tokens[: at + 1])).all(), f"token {at} is another"
        self._compute(request, blocks, done, done + count)
        self.worker.save_kv_layer(0, Stream())
        self.worker.wait_for_save(Stream())
        assert self.worker.get_finished([], []) == ([], [])

    def _compute(self, request: Request, blocks: list[int], start: int, end: int) -> None:
        for at in range(start, end):
            self.pool[blocks[at // SIZE], ..., at % SIZE] = content(request.tokens[: at + 1])

    def close(self) -> None:
        self.worker.close()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    interface = types.ModuleType("tensorrt_llm._torch.pyexecutor.kv_cache_connector")
    vars(interface).update(KvCacheConnectorWorker=Half, KvCacheConnectorScheduler=Half)
    name = ""
    for part in interface.__name__.split("."):
        name = f"{name}.{part}".lstrip(".")
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.delitem(sys.modules, "kvrt.integrations.tensorrt_llm.connector", raising=False)
    from kvrt.integrations.tensorrt_llm import connector

    monkeypatch.setattr(connector, "version", lambda name: "1.2.1")
    made: list[Engine] = []

    def start(
        identity: str = "model@1", dtype: torch.dtype = torch.float32, ranks: int = 1, **more: Any
    ) -> Engine:
        options = {"tiers": f"disk:{tmp_path}:64MiB", "identity": identity}
        monkeypatch.setenv(connector.OPTIONS, json.dumps(options))
        args = types.SimpleNamespace(
            model="some/model", tensor_parallel_size=ranks, pipeline_parallel_size=1,
            kv_cache_config=types.SimpleNamespace(tokens_per_block=SIZE),
        )  # fmt: skip
        made.append(Engine(connector, args, dtype, **more))
        return made[-1]

    yield start
    for engine in made:
        engine.close()
    sys.modules.pop("kvrt.integrations.tensorrt_llm.connector", None)


PROMPT = [*range(30)]


@pytest.mark.parametrize("counts_loaded", [False, True])
@pytest.mark.parametrize("chunk", [3, 8, 100])
def test_what_one_engine_computed_another_begins_with(
    start: Callable[..., Engine], chunk: int, counts_loaded: bool
) -> None:
    one = start(counts_loaded=counts_loaded)
    assert one.run(PROMPT, chunk=chunk) == 0
    one.close()
    two = start(counts_loaded=counts_loaded)
    assert two.run(PROMPT, chunk=chunk) == 28
    assert two.run([*PROMPT[:18], 77, 78, 79], chunk=chunk) == 16
    assert two.run([77, *PROMPT[1:]], chunk=chunk) == 0
    assert two.run(PROMPT, chunk=chunk, local=12) == 16
    assert two.run(PROMPT, chunk=chunk, local=13) == 0, "the engine has a part of a block"


def test_answers_are_kept_as_well(start: Callable[..., Engine]) -> None:
    one = start()
    prompt = [5, 6, 7]
    one.run(prompt, 14)
    answered = Request(0, [*prompt])
    while len(answered.tokens) < 17:
        answered.tokens.append(sum(answered.tokens) % 200)
    one.close()
    assert start().run([*answered.tokens, 9]) == 16


def test_a_damaged_block_and_those_behind_it_are_computed(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    one = start()
    one.run(PROMPT)
    one.close()
    (file,) = tmp_path.glob(f"*/{DATA}")
    raw = bytearray(file.read_bytes())
    third = torch.tensor([content(PROMPT[: at + 1]) for at in range(8, 12)]).expand(SHAPE)
    raw[raw.index(third.contiguous().numpy().tobytes())] ^= 1
    file.write_bytes(raw)
    assert start().run(PROMPT) == 8


def test_no_other_model_or_cache_answers(start: Callable[..., Engine]) -> None:
    one = start()
    one.run(PROMPT)
    one.close()
    for other in ({"identity": "model@2"}, {"dtype": torch.float64}):
        engine = start(**other)
        assert engine.run(PROMPT) == 0
        engine.close()


def test_two_engines_of_a_process_have_each_its_own(start: Callable[..., Engine]) -> None:
    one, two = start(), start(identity="model@2")
    one.run(PROMPT)
    assert two.run(PROMPT) == 0
    one.worker._writer.submit(int).result()  # behind what is to be written
    assert one.run(PROMPT) == 28


@pytest.mark.parametrize(
    "own",
    [{"lora_task_id": 0}, {"cache_salt_id": 7}, {"prompt_embedding_table": torch.zeros(2, 3)},
     {"multimodal_hashes": [[1, 2]]}, {"multimodal_embedding": torch.zeros(1, 1)},
     {"py_multimodal_data": {"image": {}}}, {"mrope_rotary_cos_sin": torch.zeros(1, 1)}],
    ids=lambda own: next(iter(own)),
)  # fmt: skip
def test_what_is_not_its_tokens_alone_is_neither_kept_nor_found(
    start: Callable[..., Engine], own: dict[str, object]
) -> None:
    engine = start()
    engine.run(PROMPT, own=own)
    engine.close()
    engine = start()
    assert engine.run(PROMPT, own=dict.fromkeys(own)) == 0
    engine.close()
    engine = start()
    assert engine.run(PROMPT, own=own) == 0
    assert engine.run(PROMPT, own={"multimodal_hashes": []}) == 28


def test_what_it_cannot_keep_is_refused(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="blocks of one rank, and here are 2"):
        start(ranks=2)
    engine = start()
    for given, why in (
        ("disk:/x:1GiB", "KVRT_TENSORRT_LLM is no JSON"),
        ("{}", "tiers are not said"),
        ("[1]", "no object of options"),
    ):
        monkeypatch.setenv("KVRT_TENSORRT_LLM", given)
        with pytest.raises(ConfigError, match=why):
            type(engine.worker)(engine.worker._llm_args)


def test_a_request_without_places_for_what_it_was_offered_is_not_answered_wrongly(
    start: Callable[..., Engine],
) -> None:
    one = start()
    one.run(PROMPT)
    one.close()
    two = start()
    assert two.scheduler.get_num_new_matched_tokens(Request(9, PROMPT), 0) == (28, False)
    with pytest.raises(IntegrityError, match="request 9 has no blocks"):
        two.scheduler.build_connector_meta(Output([Data(9, PROMPT, [1, 2], 0, 2)]))


def test_a_request_that_begins_again_forgets_where_its_tokens_were(
    start: Callable[..., Engine],
) -> None:
    engine, request = start(), Request(9, PROMPT)
    engine.scheduler.get_num_new_matched_tokens(request, 0)
    _, saves = engine.scheduler.build_connector_meta(Output([Data(9, PROMPT[:8], [1, 2], 0, 8)]))
    assert [block for _, block in saves] == [1, 2]
    engine.scheduler.request_reset(request)
    _, saves = engine.scheduler.build_connector_meta(Output([Data(9, PROMPT[:8], [5, 6], 0, 8)]))
    assert [block for _, block in saves] == [5, 6]


def test_blocks_are_called_by_all_tokens_up_to_their_ends() -> None:
    names = block_names(PROMPT, SIZE, [])
    assert len({*names}) == len(names) == 7
    assert block_names(PROMPT[:9], SIZE, []) == names[:2]
    assert not {*block_names([77, *PROMPT[1:]], SIZE, [])} & {*names}
    assert block_names(PROMPT, SIZE, names[:3]) == names


def test_blocks_that_are_nowhere_any_more_are_not_saved() -> None:
    running = Running(SIZE)
    saved = running.goes_on(PROMPT[:12], [3, -1, 4], 0, 12)
    assert [block for _, block in saved] == [3, 4]
    assert running.goes_on([1], [], 12, 1) == []
