"""What a user says to share a device, and where the ledger for it lies."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvrt.checks import Checks, Flag, Maybe, Number, Size, Text, Whole, check_options
from kvrt.errors import ConfigError, StoreError
from kvrt.sharing.bell import bells_of
from kvrt.sharing.tenant import Tenant, Terms, tenants_of
from kvrt.spi import DeviceInfo
from kvrt.units import parse_bytes

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How a runtime shares its device with other processes of the same user.

    All that name the same share of the same device keep within one budget: weights and KV memory of
    all together are never more than `size`. Checked when made: a bad value is a `ConfigError`.

    Args:
        name: of the share: up to 48 letters, digits, points, dashes and underscores.
        size: what all may hold together: bytes, or a string such as ``24GiB`` or ``80%`` (of the
            device's memory). None: as those have it that are there, else the device's memory.
        guarantee: what this runtime is due whatever others want, in the same form; 0: nothing.
        lend: others may have what it does not use of its guarantee; it gets that back once they
            have ended their steps. False: it is kept free.
        weight: its part of what nobody is guaranteed, beside the others' weights.
        priority: runtimes of a higher one come first; of the same one, weights count.
    """

    name: str
    size: int | str | None = None
    guarantee: int | str = 0
    lend: bool = False
    weight: float = 1.0
    priority: int = 0

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in TERMS}
        if given["guarantee"] == 0:
            del given["guarantee"]
        for name, value in check_options(TERMS, **given).items():
            object.__setattr__(self, name, value)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"share is called {self.name!r:.60}",
                fix="use up to 48 letters, digits, points, dashes and underscores",
            )

    def join(self, who: str, device: DeviceInfo) -> Tenant:
        """Take part.

        Args:
            who: the tenant, for people.
            device: that is shared.

        Raises:
            CapacityError: the guarantees of all are more than there is.
            ConfigError: others share another size.
            StoreError: the ledger cannot be used.
        """
        path = ledger_folder() / f"{self.name}.{device.backend}{device.index}"
        whole = device.total_bytes

        def nbytes(size: int | str) -> int:
            return size if isinstance(size, int) else parse_bytes(size, whole=whole)

        terms = Terms(who, nbytes(self.guarantee), self.lend, self.weight, self.priority)
        total = None if self.size is None else nbytes(self.size)
        return Tenant(path, total, terms, whole)


TERMS: Checks = {
    "name": Text(),
    "size": Maybe(Size()),
    "guarantee": Size(),
    "lend": Flag(),
    "weight": Number(0.001, 1000),
    "priority": Whole(-1000, 1000),
}
"""Of each field, what it may be."""


def sweep(prefix: str) -> None:
    """Remove the ledgers of shares of which nobody lives any more: those whose names begin so, and
    that are nobody's to come back to. Who joins such a share meanwhile makes it anew.

    Raises:
        StoreError: others may write to where ledgers lie.
    """
    for path in ledger_folder().glob(f"{prefix}*"):
        with contextlib.suppress(StoreError):
            if not tenants_of(path)[1]:
                path.unlink(missing_ok=True)
                for bell in bells_of(path):
                    bell.unlink(missing_ok=True)


def ledger_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where ledgers lie: ``KVRT_SHARE_DIR``, else kvrt in the user's folder for things of running
    programs, else one of the user's own beside temporary files. It is made if it is missing.

    Raises:
        StoreError: others may write there.
    """
    if own := environ.get("KVRT_SHARE_DIR"):
        folder = Path(own)
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        folder = Path(runtime) / "kvrt"
    else:
        folder = Path(f"/tmp/kvrt-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StoreError(
            f"shares are kept in {folder}: {error.strerror}",
            reason="denied",
            fix="set KVRT_SHARE_DIR to a folder of your own",
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StoreError(
            f"shares are kept in {folder}, where others may write",
            reason="denied",
            fix="set KVRT_SHARE_DIR to a folder of your own, with mode 0700",
        )
    return folder
