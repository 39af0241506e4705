"""Ways for the same answers to come about: each first shows that what it is about has happened.

They need a model whose keys and values take `TOKEN` bytes for a token, over all its layers: then a
memory limit of a few chunks is a few hundred tokens, or more where layers have windows. Where all
have one, pages run out only among prompts that are shorter than it: others do not grow.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

CHUNK, TOKEN = 2 << 20, 16 << 10
ONE = SamplingParams(max_tokens=1, ignore_eos=True)

Answers = list[tuple[int, ...]]


class Ways:
    """The ways, each of which asks for the same answers.

    Args:
        make: a runtime of the model, with these options and more.
        prompts: that are asked.
        folder: an empty one.
        params: how each is answered, greedily.
        full: there is no free page when the prompts come, so that each one is taken from another.
        left_by: a runtime with other options, these, left the pages of the same prompts in the
            folder.
    """

    def __init__(
        self,
        make: Callable[..., Runtime],
        prompts: Sequence[Sequence[int]],
        folder: Path,
        params: SamplingParams,
        *,
        full: bool = False,
        left_by: Mapping[str, object] | None = None,
    ) -> None:
        self.make = make
        self.prompts = [list(prompt) for prompt in prompts]
        self.folder = folder
        self.params = params
        self.full = full
        self.left_by = left_by

    def cold(self) -> Answers:
        runtime = self.make(prefix_cache=False)
        if self.full:
            _limit(runtime, max(4, self._least(runtime)))
        answers, cached, _ = self._ask(runtime)
        assert cached == 0
        return answers

    def prefix_hit(self) -> Answers:
        runtime = self.make()
        self._fill(runtime, self._chunks() + 2)
        answers, _, _ = self._ask(runtime)
        again, cached, _ = self._ask(runtime)
        assert cached > 0
        assert answers == again
        return answers

    def preempted_and_recomputed(self) -> Answers:
        runtime = self.make(preemption="recompute")
        self._fill(runtime, self._least(runtime))
        answers, _, preemptions = self._ask(runtime)
        assert preemptions > 0
        return answers

    def preempted_and_moved(self) -> Answers:
        runtime = self.make(offload="host:64MiB", preemption="move")
        self._fill(runtime, self._least(runtime))
        answers, _, preemptions = self._ask(runtime)
        assert preemptions > 0
        if not _fetched(runtime):  # who had to stop went on before its pages were taken
            again, _, _ = self._ask(runtime)
            assert again == answers
        assert _fetched(runtime) > 0
        return answers

    def fetched_from_host(self) -> Answers:
        return self._spilled("host:64MiB")

    def fetched_from_disk(self) -> Answers:
        self._left_by_another()
        return self._spilled(f"disk:{self.folder}:64MiB")

    def restored(self) -> Answers:
        first = self.make()
        self._ask(first)
        assert first.save_cache(self.folder, compress=random.choice([None, 3])) > 0
        first.close()
        runtime = self.make(preemption="move")
        assert runtime.load_cache(self.folder) > 0
        self._fill(runtime, max(6, self._least(runtime)))
        answers, cached, _ = self._ask(runtime)
        assert cached > 0
        assert _fetched(runtime) > 0
        return answers

    def kept_in_a_folder(self) -> Answers:
        self._left_by_another()
        first = self.make(cache_dir=self.folder)
        answers, cached, _ = ask(first, self.prompts[:1], self.params)
        assert cached == 0, "pages of another are not taken"
        self._ask(first)
        first.close()
        runtime = self.make(cache_dir=self.folder, preemption="move")
        again, cached, _ = self._ask(runtime)
        assert cached > 0
        assert _fetched(runtime) > 0
        assert again[:1] == answers
        return again

    def _ask(self, runtime: Runtime) -> tuple[Answers, int, int]:
        return ask(runtime, self.prompts, self.params)

    def _left_by_another(self) -> None:
        if self.left_by:
            with self.make(cache_dir=self.folder, **self.left_by) as runtime:
                self._ask(runtime)

    def _spilled(self, offload: str) -> Answers:
        runtime = self.make(offload=offload, preemption="move")
        _limit(runtime, max(6, self._least(runtime)))
        answers, _, _ = self._ask(runtime)
        before = _fetched(runtime)
        _crowd(runtime, 199)
        # Of windows, those at the ends of texts are kept.
        texts = [
            [*prompt, *answer[:-1]] for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        last, cached, _ = ask(runtime, texts, ONE)
        assert cached > 0
        assert _fetched(runtime) > before
        assert last == [answer[-1:] for answer in answers]
        again, _, _ = self._ask(runtime)
        assert answers == again
        return answers

    def _fill(self, runtime: Runtime, chunks: int) -> None:
        """Leave so many chunks, and if it is about that, nothing free in them."""
        _limit(runtime, chunks)
        if self.full:
            _crowd(runtime, 0)

    def _least(self, runtime: Runtime) -> int:
        """Chunks that the longest of them needs, if it is alone."""
        longest = max(map(len, self.prompts)) + self.params.max_tokens
        return runtime.cache.bytes_for(longest) // CHUNK

    def _chunks(self) -> int:
        new = self.params.max_tokens + 64
        return sum(len(prompt) + new for prompt in self.prompts) * TOKEN // CHUNK


WAYS = [name for name in vars(Ways) if not name.startswith("_")]


def ask(
    runtime: Runtime, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> tuple[Answers, int, int]:
    """Answers; how many tokens were cached, and how often somebody was preempted."""
    results = runtime.generate([list(prompt) for prompt in prompts], params)
    assert [result.error for result in results] == [None] * len(results)
    cached = sum(result.usage.cached_tokens for result in results)
    preemptions = sum(result.usage.preemptions for result in results)
    return [result.token_ids for result in results], cached, preemptions


def _limit(runtime: Runtime, chunks: int) -> None:
    runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)


def _crowd(runtime: Runtime, first: int) -> None:
    """Cache the pages of other prompts until nothing is free, and nothing older is left."""
    pages = runtime.stats().cache.limit_bytes // runtime.stats().cache.page_bytes
    length = 4 * runtime.config.page_size
    # Pages that were reused are worth more to the policy by cost, until others have come and gone.
    turns = 4 if runtime.config.prefix_cache_policy == "cost" else 1
    for n in range(turns * -(-pages // 4)):
        ask(runtime, [[(first - n) % 199, n % 199] * (length // 2 + 1)], ONE)
    cache = runtime.stats().cache
    few = cache.cached_pages // 8 + 2  # evicted ahead of need
    if len(layouts := runtime.cache.layouts) > 1:  # and of each group, of its last chunk
        few += sum(CHUNK // layout.page_bytes for layout in layouts)
    assert cache.free_pages <= few


def _fetched(runtime: Runtime) -> int:
    stats = runtime.stats().offload
    assert stats is not None
    return stats.fetched_pages
