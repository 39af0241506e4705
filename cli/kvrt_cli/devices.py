"""``kvrt run --list-devices``: every device that can be opened here."""

from typing import Any

from kvrt.errors import KvrtError
from kvrt.units import format_bytes
from kvrt_cli.terminal import Terminal


def list_devices(terminal: Terminal, *, as_json: bool) -> None:
    """Print the devices, one a line; what cannot be opened goes to stderr with its reason."""
    from kvrt.registry import candidates, examine, open_device

    found: list[dict[str, Any]] = []
    for candidate in map(examine, candidates()):
        if not candidate.available or candidate.probe is None:
            terminal.note(f"{candidate.name}: {candidate.reason}")
            continue
        for index in range(candidate.probe.devices):
            try:
                device = open_device(candidate.name, index)
            except KvrtError as error:
                terminal.warn(f"{candidate.name}:{index}: {error}")
                continue
            info = device.info
            device.close()
            found.append(
                {
                    "backend": info.backend,
                    "device": info.index,
                    "name": info.name,
                    "arch": info.arch,
                    "total_bytes": info.total_bytes,
                    "dtypes": list(info.compute_dtypes),
                    "kv_dtypes": list(info.kv_formats),
                }
            )
    if as_json:
        terminal.json(found, indent=2)
        return
    for row in found:
        where = f"{row['backend']}:{row['device']}"
        memory = format_bytes(row["total_bytes"])
        print(f"{where:<10} {row['name']} ({row['arch']}), {memory}, {', '.join(row['dtypes'])}")
