"""Whatever happens to an engine and in whatever order, answers are right and nothing leaks."""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kvrt.config import RuntimeConfig

from .conftest import MakeRuntime
from .service import CHUNK, MOST_CHUNKS, Asked, Completions, Service

rng = random.Random(8)
STEMS = [tuple(rng.randrange(199) for _ in range(120)) for _ in range(4)]
PROMPTS = [
    *(stem[:length] for stem in STEMS for length in (120, 81, 48)),
    *((*stem[:33], n) for n, stem in enumerate(STEMS)),
    (7,),
]
"""They share beginnings of all lengths, within a page, at its edge, and beyond."""

prompts = st.sampled_from(PROMPTS)
salts = st.sampled_from(["", "", "tenant"])
requests = st.tuples(
    st.builds(
        Asked,
        prompts,
        n=st.sampled_from([1, 1, 1, 2, 3]),
        new=st.sampled_from([1, 7, 30, 60]),
        beams=st.sampled_from([False, False, True]),
    ),
    st.sampled_from(["", "", "", "tenant", None]),
    st.sampled_from([0, 0, 4]),
)
"""What is asked, by whom, and how many tokens may be guessed in a step."""
OFFLOAD = (None, "host:{host}", "disk:{disk}", "host:{host},disk:{disk}")


class EngineMachine(RuleBasedStateMachine):
    """Rules are what a runtime does on its engine's thread, for callers and by itself."""

    model: ClassVar[Path]
    folder: ClassVar[Path]
    right: ClassVar[Callable[[Asked], Completions]]
    seen: ClassVar[Counter[str]]

    @initialize(
        offload=st.sampled_from(OFFLOAD),
        host=st.sampled_from(["3MiB", "16MiB"]),
        write=st.sampled_from(["back", "through"]),
        preemption=st.sampled_from(["move", "move", "auto", "recompute"]),
        policy=st.sampled_from(["lru", "lfu", "cost"]),
        page_size=st.sampled_from([8, 16]),
        keep_warm=st.integers(0, 2),
        batch=st.sampled_from([16, 48, 256]),
        running=st.integers(3, 8),
        copies=st.sampled_from(["early", "late", "mixed"]),
        seed=st.integers(0, 99),
        limit=st.integers(2, 3),
    )
    def open(self, offload: str | None, host: str, write: str, preemption: str, policy: str,
             page_size: int, keep_warm: int, batch: int, running: int, copies: Any, seed: int,
             limit: int) -> None:  # fmt: skip
        self.place = Path(tempfile.mkdtemp(dir=self.folder))
        tiers = offload and offload.format(host=host, disk=f"{self.place / 'tier'}:64MiB")
        config = RuntimeConfig(
            model=str(self.model), load_format="dummy", debug=True, memory_limit="512MiB",
            offload=tiers, offload_write=write, preemption=preemption,  # type: ignore[arg-type]
            prefix_cache_policy=policy, page_size=page_size,  # type: ignore[arg-type]
            keep_warm=keep_warm * CHUNK, max_batch_tokens=batch, max_running=running,
        )  # fmt: skip
        self.service = Service(config, self.place, type(self).right, copies=copies, seed=seed)
        self.service.set_limit(limit)

    @rule(batch=st.lists(requests, min_size=2, max_size=6))
    def submit(self, batch: list[tuple[Asked, str | None, int]]) -> None:
        for asked, salt, drafts in batch:
            self.service.submit(asked, salt, drafts)

    @rule(count=st.sampled_from([3, 10, 10, 40]))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.service.step()

    @rule(request=requests, count=st.integers(1, 3))
    def submit_and_abort(self, request: tuple[Asked, str | None, int], count: int) -> None:
        """Whoever asked leaves at once: it may wait, run, or be fetching pages."""
        self.service.submit(*request)
        self.step(count)
        self.service.abort(-1)

    @rule(number=st.integers(0, 9))
    def abort(self, number: int) -> None:
        self.service.abort(number)

    @rule(chunks=st.sampled_from([2, 2, 3, 3, 4, MOST_CHUNKS]))
    def set_limit(self, chunks: int) -> None:
        self.service.set_limit(chunks)

    @rule(short=st.booleans())
    def run_short(self, short: bool) -> None:
        self.service.run_short(short)

    @rule(seconds=st.sampled_from([0.0, 3.0, 30.0]))
    def rest(self, seconds: float) -> None:
        self.service.rest(seconds)

    @rule(salt=salts, prompt=prompts)
    def pin(self, salt: str, prompt: tuple[int, ...]) -> None:
        self.service.pin(salt, prompt)

    @rule(salt=salts, prompt=prompts)
    def unpin(self, salt: str, prompt: tuple[int, ...]) -> None:
        self.service.unpin(salt, prompt)

    @rule(salt=st.sampled_from(["", "tenant", None]), prompt=st.sampled_from([(), *PROMPTS]))
    def forget(self, salt: str | None, prompt: tuple[int, ...]) -> None:
        self.service.forget(salt, prompt)

    @rule(number=st.integers(0, 1), salt=st.sampled_from(["", None]), prompt=prompts)
    def save(self, number: int, salt: str | None, prompt: tuple[int, ...]) -> None:
        self.service.save(number, salt, prompt)

    @rule(number=st.integers(0, 1))
    def load(self, number: int) -> None:
        self.service.load(number)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "service"):
            self.service.check()

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.finish()
            self.seen.update(self.service.seen())
            shutil.rmtree(self.place)
            del self.service  # hypothesis keeps the machine


@pytest.fixture
def machine(
    tiny_lm: Path, tmp_path: Path, make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[EngineMachine]]:
    """The machine, and answers of a runtime that reuses nothing and serves nobody else."""
    known: dict[Asked, Completions] = {}

    def right(asked: Asked) -> Completions:
        if asked not in known:
            result = cold.stream(asked.prompt, asked.params).wait()
            known[asked] = tuple(completion.token_ids for completion in result.completions)
        return known[asked]

    # Admitted without a thought of what comes, so that pages run out.
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    cold = make_runtime(prefix_cache=False, debug=False)
    world = {
        "model": tiny_lm, "folder": tmp_path, "right": staticmethod(right), "seen": Counter()
    }  # fmt: skip
    made: Any = type("Machine", (EngineMachine,), world)
    yield made
    del made.right  # hypothesis keeps the machine, and that `cold`


@pytest.mark.promise("P13")
@pytest.mark.promise("P15")
@pytest.mark.parametrize(
    ("examples", "steps"),
    [(24, 40), pytest.param(300, 60, marks=[pytest.mark.extra, pytest.mark.timeout(1800)])],
)
def test_whatever_happens_in_whatever_order_answers_are_right_and_nothing_leaks(
    examples: int, steps: int, machine: type[EngineMachine]
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None),
    )
    for what in ("length", "abort", "cached", "preempted", "saved", "fetched", "accepted"):
        assert machine.seen[what] > 0, f"{what}: it never came to that"
