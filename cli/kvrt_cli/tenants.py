"""What ``kvrt top`` shows of tenants: cells of a table, and what they do in a second."""

from collections.abc import Mapping, Sequence

from kvrt.sharing.looking import Seen
from kvrt.units import format_bytes

COLUMNS = (
    "tenant", "process", "held", "wants", "guaranteed", "cached", "running", "waiting", "tokens/s",
    "hits", "preempted", "weight", "priority",
)  # fmt: skip

Key = tuple[str, str, str, int]
"""Of a tenant: the share, its device, the name and the process."""


def key_of(share: Seen, tenant: Seen) -> Key:
    return share["share"], share["device"], tenant["tenant"], tenant["process"]


def title_of(share: Seen) -> str:
    """A line on a share."""
    held = sum(tenant["held"] for tenant in share["tenants"])
    size = format_bytes(share["size"])
    return f"{share['share']} on {share['device']}: {format_bytes(held)} of {size} held"


def cells_of(tenant: Seen, rate: float | None) -> tuple[str, ...]:
    """A line on a tenant, in the order of `COLUMNS`.

    Args:
        rate: tokens a second; None: nobody knows.
    """
    hits = f"{tenant['reused'] / tenant['prompt']:.0%}" if tenant["prompt"] else "-"
    return (
        tenant["tenant"][:24], str(tenant["process"]), format_bytes(tenant["held"]),
        format_bytes(tenant["wants"]),
        format_bytes(tenant["guaranteed"]) + (" lent" if tenant["lends"] else ""),
        format_bytes(tenant["cached"]), str(tenant["running"]), str(tenant["waiting"]),
        "-" if rate is None else f"{rate:.0f}", hits, str(tenant["preempted"]),
        f"{tenant['weight']:g}", str(tenant["priority"]),
    )  # fmt: skip


def tokens_of(found: Sequence[Seen]) -> dict[Key, int]:
    """What each tenant has sampled since it came."""
    return {
        key_of(share, tenant): tenant["tokens"] for share in found for tenant in share["tenants"]
    }


def rates_of(
    before: Mapping[Key, int], after: Mapping[Key, int], seconds: float
) -> dict[Key, float]:
    """Tokens a second of each tenant since it was looked at last."""
    return {
        key: max(0, count - before[key]) / seconds for key, count in after.items() if key in before
    }
