"""Installs make-believe distributions: a module and the metadata that pip would have written."""

from collections.abc import Mapping
from pathlib import Path


def install(
    site: Path,
    distribution: str,
    entries: Mapping[str, str],
    *,
    version: str = "1.0",
    source: str = "",
) -> None:
    """Put a distribution into the folder `site`, which is to be on ``sys.path``.

    Args:
        site: where.
        distribution: its name, and that of its only module.
        entries: backends it registers, by name, each as ``module:attribute``.
        version: its version.
        source: of the module; empty for a distribution without one.
    """
    metadata = site / f"{distribution}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (metadata / "entry_points.txt").write_text(f"[kvrt.backends]\n{lines}")
    if source:
        (site / f"{distribution}.py").write_text(source)
