"""Where replicas fit, on devices that models share."""

from collections.abc import Iterable, Mapping

from kvrt_operator.claims import Claim, Claims, Device
from kvrt_operator.spec import Spec, size_text


def place(
    spec: Spec, names: Iterable[str], claims: Claims, devices: Mapping[Device, int]
) -> tuple[Claims, str]:
    """Claims with one for each replica that has none and fits somewhere; and why others do not.

    A replica goes to the device with the least free memory that is enough (best fit), so that large
    gaps stay for large models; devices of nodes that have none of the model's replicas come first,
    so that a node that fails takes one of them. A device has one replica of a model: a second one
    would share what it computes with, and gain nothing. Who has a place keeps it, also where a
    better one is free by now: moving costs a load.

    Args:
        names: of replicas that there are to be.
        devices: bytes of those that take something new.
    """
    why = ""
    for name in names:
        if name in claims.held:
            continue
        own = claims.of(spec.namespace, spec.name).values()
        taken = {claim.device for claim in own}
        nodes = {claim.device.node for claim in own}
        free = {device: size - claims.promised(device) for device, size in devices.items()}
        need = spec.memory.guarantee
        fits = [device for device in free if free[device] >= need and device not in taken]
        if not fits:
            why = why or _why(need, free, taken)
            continue
        best = min(fits, key=lambda device: (device.node in nodes, free[device], device))
        claims = claims.having(name, Claim(best, need, spec.uid))
    return claims, why


def _why(need: int, free: Mapping[Device, int], taken: set[Device]) -> str:
    others = {device: nbytes for device, nbytes in free.items() if device not in taken}
    if not free:
        return "no node has devices that may be shared: label one kvrt.io/share"
    if not others:
        return "every device has a replica of this model already: lower replicas or add a node"
    most = max(others, key=lambda device: (others[device], device))
    return (
        f"a replica needs {size_text(need)} of one device, and the most that is free is"
        f" {size_text(max(0, others[most]))} of {most}: lower memory.guarantee, or make room"
    )
