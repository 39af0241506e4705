"""What people see of shares: each with its tenants, as values for a table or for JSON."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvrt.errors import StoreError
from kvrt.sharing.figures import Figures
from kvrt.sharing.ledger import Row
from kvrt.sharing.share import ledger_folder
from kvrt.sharing.tenant import figures_of

Seen = dict[str, Any]
"""Of a share or of a tenant, by the names that ``kvrt top --json`` prints; sizes in bytes."""


def shares() -> list[Seen]:
    """Every share of this user that can be read.

    Raises:
        StoreError: others may write to where ledgers lie.
    """
    found = []
    for path in sorted(ledger_folder().iterdir()):
        with contextlib.suppress(StoreError):
            total, tenants = figures_of(path)
            name, _, device = path.name.rpartition(".")
            found.append(
                {
                    "share": name,
                    "device": device,
                    "size": total,
                    "tenants": [_tenant(row, figures) for row, figures in tenants],
                }
            )
    return found


def ledger_of(share: Seen) -> Path:
    """Where the ledger of a share is that was seen."""
    return ledger_folder() / f"{share['share']}.{share['device']}"


def _tenant(row: Row, figures: Figures) -> Seen:
    return {
        "tenant": row.name,
        "process": row.pid,
        "held": row.claim.held,
        "wants": row.claim.want,
        "guaranteed": row.claim.guarantee,
        "lends": row.claim.lends,
        "weight": row.claim.weight,
        "priority": row.claim.priority,
        **asdict(figures),
    }
