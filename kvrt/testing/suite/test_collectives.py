"""How ranks talk, of one rank alone: it has what it says."""

import pytest
import torch

from kvrt.spi import Collectives, Device, Meeting

HOST = "127.0.0.1"


@pytest.fixture
def collectives(device: Device) -> Collectives:
    found = device.extension(Collectives)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer Collectives")
    return found


def test_a_rank_alone_gathers_and_adds_its_own(device: Device, collectives: Collectives) -> None:
    invitation = collectives.invite(HOST, 10.0)
    meeting = Meeting(HOST, invitation.port, HOST, "alone", 0, 1, 10.0)
    alone = collectives.meet(meeting)
    invitation.close()
    own = torch.arange(12, dtype=torch.float32, device=device.info.torch_device).view(3, 4)
    assert torch.equal(alone.all_gather(own).cpu(), own[None].cpu())
    total = own.clone()
    alone.all_reduce(total)
    assert torch.equal(total.cpu(), own.cpu())
    assert (alone.rank, alone.size, alone.calls) == (0, 1, 2)
    alone.close()
