"""What is asked of a tenant from outside, and what comes of it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvrt import CapacityError, ConfigError, KvrtError, Runtime, SamplingParams, Share
from kvrt.sharing.orders import Answer, Outcome, Verb, post
from kvrt.sharing.tenant import Tenant, tenants_of
from kvrt.units import MIB

from .conftest import Join

PROMPTS = [[n, 3, n % 7] * 40 for n in range(1, 13)]
LONG = SamplingParams(max_tokens=80, ignore_eos=True)
SOON = 0.05


class Obedient:
    """A tenant that answers each order with the next of some outcomes."""

    def __init__(self, tenant: Tenant, *outcomes: Outcome) -> None:
        self.tenant = tenant
        self.seen: list[tuple[int, int]] = []
        self._outcomes = list(outcomes)
        tenant.listen(self._look)

    def _look(self) -> None:
        if self._outcomes and (order := self.tenant.order()) is not None:
            self.seen.append((order.verb, order.value))
            self.tenant.answer(order, self._outcomes.pop(0), "why")


def test_an_order_is_done_once_and_its_asker_told_what_came_of_it(ledger: Path, join: Join) -> None:
    tenant = Obedient(join("a"), Outcome.APPLIED, Outcome.DEFERRED, Outcome.REFUSED)
    assert post(ledger, "a", Verb.LIMIT, 40) == Answer(Outcome.APPLIED, 1, "why")
    assert post(ledger, "a", Verb.LIMIT, 30).outcome is Outcome.DEFERRED
    assert post(ledger, "a", Verb.WAKE) == Answer(Outcome.REFUSED, 3, "why")
    assert tenant.seen == [(Verb.LIMIT, 40), (Verb.LIMIT, 30), (Verb.WAKE, 0)]


def test_a_change_that_comes_late_is_stale_and_nobody_hears_of_it(ledger: Path, join: Join) -> None:
    tenant = Obedient(join("a"), Outcome.APPLIED, Outcome.APPLIED)
    assert post(ledger, "a", Verb.LIMIT, 40, revision=7) == Answer(Outcome.APPLIED, 7, "why")
    for late in (7, 6):
        assert post(ledger, "a", Verb.LIMIT, 9, revision=late) == Answer(Outcome.STALE, 7)
    assert post(ledger, "a", Verb.LIMIT, 50).revision == 8
    assert [value for _, value in tenant.seen] == [40, 50]


def test_who_does_not_answer_is_said_and_the_order_withdrawn(ledger: Path, join: Join) -> None:
    deaf = join("deaf")
    with pytest.raises(KvrtError, match="deaf has not answered within"):
        post(ledger, "deaf", Verb.SLEEP, 2, timeout=SOON)
    assert deaf.order() is None
    assert post(ledger, "deaf", Verb.GUARANTEE, 10, timeout=SOON).outcome is Outcome.APPLIED


def test_a_tenant_is_named_by_name_or_process_and_by_one_of_both_surely(
    ledger: Path, join: Join
) -> None:
    join("a")
    with pytest.raises(ConfigError, match="no tenant b; there is a"):
        post(ledger, "b", Verb.WAKE)
    join("a")
    with pytest.raises(ConfigError, match="2 tenants called a"):
        post(ledger, "a", Verb.WAKE)


def test_another_guarantee_holds_at_once_and_is_never_more_than_there_is(
    ledger: Path, join: Join
) -> None:
    a, b = join("a", guarantee=30), join("b")
    b.take(70)
    b.wants(100)
    with pytest.raises(CapacityError, match="not 101 B"):
        post(ledger, "b", Verb.GUARANTEE, 101)
    with pytest.raises(CapacityError) as caught:
        post(ledger, "b", Verb.GUARANTEE, 71)
    assert (caught.value.needed, caught.value.free) == (71, 70)
    post(ledger, "a", Verb.GUARANTEE, 60)
    assert b.allowance() == 40, "it is asked to give back what is guaranteed now"
    b.give(30)
    a.take(60)
    post(ledger, "a", Verb.GUARANTEE, 0)
    a.wants(0)
    assert a.allowance() == 0


def test_an_heir_of_a_row_does_not_find_what_was_asked_of_the_dead(
    ledger: Path, join: Join
) -> None:
    join("a").close()
    first = join("a")
    Obedient(first, Outcome.APPLIED)
    post(ledger, "a", Verb.LIMIT, 1, revision=100)
    first.close()
    second = join("a")
    assert second.order() is None
    Obedient(second, Outcome.APPLIED)
    assert post(ledger, "a", Verb.LIMIT, 1, revision=1).outcome is Outcome.APPLIED


def test_several_who_ask_at_once_are_all_answered(ledger: Path, join: Join) -> None:
    Obedient(join("a"), *[Outcome.APPLIED] * 20)
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(ledger, "a", Verb.RECLAIM)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.revision for answer in answers) == [*range(1, 9)]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path))
    with Runtime("tiny", keep_warm=0, share=Share(name="s", size="40MiB")) as runtime:
        yield runtime


def test_a_runtime_does_what_it_is_asked_also_while_it_runs(
    runtime: Runtime, tmp_path: Path
) -> None:
    path = tmp_path / "s.cpu0"

    def held() -> int:
        return tenants_of(path)[1][0].claim.held

    expected = [result.token_ids for result in runtime.generate(PROMPTS, LONG)]
    weights = runtime.stats().weight_bytes
    assert runtime.stats().cache.cached_pages > 50
    assert post(path, "tiny", Verb.RECLAIM).outcome is Outcome.APPLIED
    assert runtime.stats().cache.cached_pages == 0
    assert held() == weights + 2 * MIB
    assert post(path, "tiny", Verb.LIMIT, weights + 4 * MIB).outcome is Outcome.APPLIED
    assert runtime.stats().cache.asked_bytes == 4 * MIB
    refused = post(path, "tiny", Verb.LIMIT, 4 * MIB)
    assert refused.outcome is Outcome.REFUSED
    assert "too small" in refused.text
    streams = [runtime.stream(prompt, LONG) for prompt in PROMPTS]
    for verb, value in ((Verb.SLEEP, 2), (Verb.WAKE, 0), (Verb.RECLAIM, 0), (Verb.SLEEP, 1)):
        assert post(path, "tiny", verb, value).outcome is Outcome.APPLIED
    assert runtime.asleep == 1
    assert runtime.busy
    post(path, "tiny", Verb.WAKE)
    assert [stream.wait().token_ids for stream in streams] == expected
    post(path, "tiny", Verb.SLEEP, 2)
    assert held() == 2 * MIB
    time.sleep(SOON)
    assert runtime.asleep == 2, "it wakes for requests only"
    post(path, "tiny", Verb.GUARANTEE, 20 * MIB)
    assert tenants_of(path)[1][0].claim.guarantee == 20 * MIB
    assert runtime.generate(PROMPTS, LONG)[0].token_ids == expected[0]
