"""Ranks of the CPU backend that talk: here threads of one process."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import pytest
import torch
from torch import Tensor

from kvrt.errors import PeerLost
from kvrt.registry import open_device
from kvrt.spi import Collective, Collectives, Invitation, Meeting

HOST = "127.0.0.1"
names = map(str, count())


@pytest.fixture(scope="module")
def collectives() -> Iterator[Collectives]:
    device = open_device("cpu")
    found = device.extension(Collectives)  # type: ignore[type-abstract]
    assert found is not None
    yield found
    device.close()


@pytest.fixture
def invitation(collectives: Collectives) -> Iterator[Invitation]:
    invitation = collectives.invite(HOST, 5.0)
    yield invitation
    invitation.close()


def meeting(invitation: Invitation, name: str, rank: int, size: int, seconds: float) -> Meeting:
    return Meeting(HOST, invitation.port, HOST, name, rank, size, seconds)


@pytest.fixture
def together(
    collectives: Collectives, invitation: Invitation
) -> Callable[..., list["Future[Tensor | None]"]]:
    """Have several ranks do something, each on a thread; and what becomes of each."""

    def together(
        size: int, do: Callable[[Collective], Tensor | None], seconds: float = 5.0
    ) -> list["Future[Tensor | None]"]:
        name = next(names)

        def be(rank: int) -> Tensor | None:
            own = collectives.meet(meeting(invitation, name, rank, size, seconds))
            try:
                return do(own)
            finally:
                own.close()

        with ThreadPoolExecutor(size) as pool:
            return [pool.submit(be, rank) for rank in range(size)]

    return together


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_all_have_what_each_has(
    dtype: torch.dtype, together: Callable[..., list["Future[Tensor]"]]
) -> None:
    parts = [torch.arange(6).view(2, 3).add(10 * rank).to(dtype) for rank in range(3)]
    for found in together(3, lambda own: own.all_gather(parts[own.rank])):
        assert torch.equal(found.result(), torch.stack(parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_have_the_same_sum(
    dtype: torch.dtype, together: Callable[..., list["Future[Tensor]"]]
) -> None:
    parts = torch.randn(4, 3, 257, generator=torch.Generator().manual_seed(1)).to(dtype)

    def do(own: Collective) -> Tensor:
        x = parts[own.rank].clone()
        own.all_reduce(x)
        return x

    first, *others = (one.result() for one in together(4, do))
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first.double(), parts.double().sum(0), rtol=0.03, atol=0.03)


def test_what_is_sent_is_received(together: Callable[..., list["Future[Tensor]"]]) -> None:
    sent = torch.arange(1 << 20)

    def do(own: Collective) -> Tensor:
        came = torch.empty_like(sent)
        if own.rank == 0:
            own.send(sent, 1)
            own.receive(came, 1)
        else:
            own.receive(came, 0)
            own.send(came, 0)
        return came

    assert all(torch.equal(one.result(), sent) for one in together(2, do))


def test_a_rank_that_has_gone_is_noticed_at_once(
    together: Callable[..., list["Future[Tensor | None]"]],
) -> None:
    def do(own: Collective) -> Tensor | None:
        return own.all_gather(torch.ones(3)) if own.rank else None

    begun = time.monotonic()
    _, found = together(2, do, seconds=30.0)
    assert isinstance(found.exception(), PeerLost)
    assert time.monotonic() - begun < 5.0


def test_a_rank_that_is_late_is_not_waited_for_longer(
    together: Callable[..., list["Future[Tensor | None]"]],
) -> None:
    def do(own: Collective) -> Tensor | None:
        if own.rank:
            return own.all_gather(torch.ones(3))
        time.sleep(3.0)
        return None

    _, found = together(2, do, seconds=1.0)
    assert isinstance(found.exception(), PeerLost)


def test_who_does_not_come_is_not_waited_for_longer(
    collectives: Collectives, invitation: Invitation
) -> None:
    begun = time.monotonic()
    with pytest.raises(PeerLost):
        collectives.meet(meeting(invitation, "two", 0, 2, 1.0))
    assert time.monotonic() - begun < 10.0
