"""kvrt's tiers behind vLLM's offloading connector, without vLLM: which blocks a request is told are
there, and what the worker then finds. `test_vllm.py` has the same with vLLM itself."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvrt import ConfigError, OutOfMemory
from kvrt.errors import DeviceError, StoreError
from kvrt.integrations.pages import model_identity, open_pages, stored_name
from kvrt.integrations.tiers import TierOptions
from kvrt.integrations.vllm.region import Region, open_region
from kvrt.integrations.vllm.shelf import Found, Shelf
from kvrt.kv.tiers import space
from kvrt.kv.tiers.config import TierConfig
from kvrt.kv.tiers.files import DATA
from kvrt.kv.tiers.host import HostPage, HostStore
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.stores import Stores

SIZES = (8192, 4096)
ROOM = 6
"""Pages of the larger kind that host memory has room for."""

MODEL = bytes(32)
NAMES = [stored_name(b"%d" % number, number % 2) for number in range(40)]


def body(name: StoredName) -> Tensor:
    raw = hashlib.sha256(name.page.key + bytes([name.group])).digest()
    return torch.frombuffer(bytearray(raw * (SIZES[name.group] // 32)), dtype=torch.uint8)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Desk:
    """A shelf, and a worker that maps its memory for itself."""

    def __init__(self, folder: Path | None, room: int = ROOM, model: bytes = MODEL) -> None:
        self.disk = None if folder is None else open_pages(folder, model, ("float32",), SIZES)
        self.region = Region(room * SIZES[0] + 4096)
        nbytes = self.region.nbytes
        self.host = HostStore(self.region, SIZES, nbytes, slab_bytes=nbytes)
        self.shelf = Shelf(Stores(self.host, self.disk, write_at_once=True))
        self.memory = open_region(self.region.path, nbytes)

    def place(self, page: HostPage) -> Tensor:
        at = self.region.place_of(page.data)
        return self.memory[at : at + SIZES[page.name.group]]

    def write(self, pages: list[HostPage]) -> None:
        for page in pages:
            self.place(page).copy_(body(page.name))

    def check(self, pages: list[HostPage]) -> None:
        for page in pages:
            assert torch.equal(self.place(page), body(page.name))

    def keep(self, names: list[StoredName]) -> list[StoredName]:
        pages = self.shelf.offer(names)
        self.write(pages)
        self.shelf.arrived([page.name for page in pages])
        return [page.name for page in pages]

    def keep_soon(self, name: StoredName) -> bool:
        self.shelf.poll()
        return bool(self.keep([name]))

    def idle(self) -> bool:
        self.shelf.poll()
        return self.host.stats().pinned == 0

    def look(self, name: StoredName, request: str = "a") -> Found:
        """What is said at last."""
        said: list[Found] = []

        def settled() -> bool:
            self.shelf.poll()
            said.append(self.shelf.look(name, request))
            return said[-1] is not Found.COMING

        until(settled)
        return said[-1]

    def close(self) -> None:
        self.shelf.close()
        self.region.close()


@pytest.fixture(autouse=True)
def files_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "STEP", 4 * SIZES[0])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(*args: object, **kwargs: object) -> Desk:
        made.append(Desk(tmp_path / "pages", *args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_the_worker_wrote_is_found_and_read_again(desk: Callable[..., Desk]) -> None:
    one = desk()
    pages = one.shelf.offer(NAMES[:2])
    assert [page.name for page in pages] == NAMES[:2]
    assert one.shelf.look(NAMES[0], "a") is Found.ARRIVING
    one.write(pages)
    one.shelf.arrived(NAMES[:2])
    assert one.shelf.offer(NAMES[:2]) == []  # they are there
    assert [one.shelf.look(name, "a") for name in NAMES[:3]] == [
        Found.HERE, Found.HERE, Found.NOWHERE
    ]  # fmt: skip
    one.check(one.shelf.lend(NAMES[:2], "a"))
    one.shelf.returned(NAMES[:2], "a")
    until(one.idle)


def test_another_process_finds_what_the_last_one_kept(desk: Callable[..., Desk]) -> None:
    one = desk()
    kept = one.keep(NAMES[:4])
    one.close()
    two = desk()
    assert [two.look(name) for name in kept] == [Found.HERE] * 4
    assert all(two.shelf.fetched(name, "a") for name in kept)
    two.check(two.shelf.lend(kept, "a"))


def test_a_damaged_page_is_never_promised(desk: Callable[..., Desk], tmp_path: Path) -> None:
    one = desk()
    one.keep(NAMES[:1])
    one.close()
    (data,) = (tmp_path / "pages").glob(f"*/{DATA}")
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    two = desk()
    assert two.shelf.look(NAMES[0], "a") is Found.COMING
    assert two.look(NAMES[0]) is Found.NOWHERE
    assert two.shelf.take_counts().lost == 1


def test_what_comes_for_a_request_that_has_ended_is_nobodys(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.keep(NAMES[:1])
    one.close()
    two = desk()
    assert two.shelf.look(NAMES[0], "a") is Found.COMING
    two.shelf.ended("a")
    until(lambda: two.idle() and NAMES[0] in two.host)
    assert two.look(NAMES[0], "b") is Found.HERE


def test_models_in_one_folder_do_not_answer_each_other(desk: Callable[..., Desk]) -> None:
    one, other = desk(), desk(model=bytes([1] * 32))
    one.keep(NAMES[:1])
    assert other.look(NAMES[0]) is Found.NOWHERE
    with pytest.raises(StoreError, match="in use by process"):
        desk()


@pytest.mark.parametrize("on_disk", [True, False])
def test_requests_that_want_more_than_there_is_room_for_get_what_fits(
    tmp_path: Path, on_disk: bool
) -> None:
    one = Desk(tmp_path if on_disk else None)
    many = [stored_name(b"%d" % number) for number in range(3 * ROOM)]
    for name in many:
        until(lambda name=name: one.keep_soon(name))  # type: ignore[misc]
    if not on_disk:
        many = many[-ROOM:]
    said = {}
    for name in many:
        said[name] = [one.look(name, request) for request in ("a", "b")]
    there = [name for name in many if said[name] == [Found.HERE] * 2]
    assert len(there) == ROOM
    assert all(said[name] == [Found.NOWHERE] * 2 for name in many if name not in there)
    assert one.shelf.offer([stored_name(b"new")]) == []
    assert one.shelf.take_counts().refused >= 1
    one.shelf.ended("a")
    one.check(one.shelf.lend(there, "b"))
    one.shelf.returned(there, "b")
    assert one.keep([stored_name(b"new")])
    one.close()


def test_whatever_requests_do_they_read_what_was_written_and_nothing_stays_pinned(
    desk: Callable[..., Desk],
) -> None:
    draw, one = random.Random(5), desk(room=10)
    told: dict[str, list[StoredName]] = {}
    lent: list[tuple[str, list[HostPage]]] = []
    written: list[list[HostPage]] = []
    stale: list[list[HostPage]] = []
    number = read = 0
    for _ in range(4000):
        one.shelf.poll()
        act = draw.random()
        if act < 0.15:
            number += 1
            told[f"r{number}"] = []
        elif act < 0.55 and told:
            request = draw.choice([*told])
            for name in draw.sample(NAMES, 4):
                if one.shelf.look(name, request) is Found.HERE and name not in told[request]:
                    told[request].append(name)
        elif act < 0.7 and told:
            request = draw.choice([*told])
            some = told[request][: draw.randint(0, 4)]
            lent.append((request, one.shelf.lend(some, request)))
            told[request] = []
        elif act < 0.8 and told:
            request = draw.choice([*told])
            del told[request]
            one.shelf.ended(request)
        elif act < 0.9:
            written.append(one.shelf.offer(draw.sample(NAMES, 3)))
        else:
            for pages in stale:  # the worker is about these when it is told to do more
                one.write(pages)
            for pages in written:
                if whole := draw.random() < 0.9:
                    one.write(pages)
                one.shelf.arrived([page.name for page in pages], whole)
            for request, pages in lent:
                one.check(pages)
                read += len(pages)
                one.shelf.returned([page.name for page in pages], request)
            stale, written, lent = [], [], []
        if draw.random() < 0.003:
            one.shelf.forget()
            told = {request: [] for request in told}
            stale, written, lent = stale + written, [], []
            assert all(one.shelf.look(name, "probe") is Found.NOWHERE for name in NAMES)
        one.host.check_integrity()
    assert read > 50
    for request in [*told, "probe"]:
        one.shelf.ended(request)
    for pages in written:
        one.shelf.arrived([page.name for page in pages], False)
    for request, pages in lent:
        one.shelf.returned([page.name for page in pages], request)
    until(one.idle)


def test_memory_is_mapped_by_its_path_and_given_once() -> None:
    region = Region(8192)
    memory = region.host_buffer(8192)
    memory[5000] = 7
    assert open_region(region.path, 8192)[5000] == 7
    with pytest.raises(OutOfMemory):
        region.host_buffer(1)
    region.close()
    region.close()
    with pytest.raises(DeviceError, match="another process"):
        open_region("/proc/self/fd/999", 8192)


def test_a_models_identity_is_that_of_its_files_or_what_the_user_says(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    first = model_identity(str(tmp_path), None)
    assert model_identity(str(tmp_path), None) == first
    weights.write_bytes(b"22")
    assert model_identity(str(tmp_path), None) != first
    assert model_identity("some/model", "some/model@c0ffee") != first
    with pytest.raises(ConfigError, match="is not a folder") as error:
        model_identity("some/model", None)
    assert "identity" in error.value.fix


def test_options_of_tiers_are_checked_among_those_of_vllm() -> None:
    read = TierOptions.read({"spec_name": "TierSpec", "tiers": "disk:/kept:2GiB", "compress": 3})
    assert read == TierOptions(TierConfig(0, 2 << 30, Path("/kept")), 3)
    for wrong, message in [
        ({}, "tiers are not said"),
        ({"tiers": "tape:1GiB"}, "is not a tier"),
        ({"tiers": "host:1GiB", "compress": 99}, "compress"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TierOptions.read(wrong)
