"""Python, the libraries kvrt needs or could use, and the settings in the environment."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

import kvrt
from kvrt.config import weights_folder
from kvrt.registry import GROUP as BACKENDS
from kvrt.units import format_bytes
from kvrt_cli.checks.check import Check, Mark
from kvrt_cli.profiles.keys import is_secret, nearest, variables, without_passwords

PYTHON, LIBRARIES, ENVIRONMENT = "python", "libraries", "environment"

SETTINGS = {"KVRT_BACKEND", "KVRT_ISA", "KVRT_SHARE_DIR", "KVRT_LOG_LEVEL", "KVRT_LOG_FORMAT",
            "KVRT_DEBUG"}  # fmt: skip
# Kubernetes sets such variables for a service that is called kvrt; they are not meant for us.
SERVICE = re.compile(r"KVRT_(SERVICE_(HOST|PORT).*|PORT(_\d+_(TCP|UDP).*)?)")
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?\s*\(?(?:>=\s*([\d.]+))?")
EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)")
FOR_DEVELOPERS = {"test", "testing"}
VENDORS = {"0x10de": ("NVIDIA", "cuda", "CUDA"), "0x1002": ("AMD", "hip", "ROCm")}
DISPLAYS = ("0x03", "0x12")  # PCI classes: display controllers, processing accelerators


def python() -> Iterator[Check]:
    venv = " in a virtual environment" if sys.prefix != sys.base_prefix else ""
    yield Check(
        PYTHON, "python", Mark.OK,
        f"Python {platform.python_version()}{venv}: {sys.executable}",
        data={"version": platform.python_version(), "executable": sys.executable},
    )  # fmt: skip
    where = Path(kvrt.__file__).parent
    yield Check(
        PYTHON, "kvrt", Mark.OK, f"kvrt {kvrt.__version__}: {where}",
        data={"version": kvrt.__version__},
    )  # fmt: skip


def libraries() -> Iterator[Check]:
    """What kvrt's own metadata requires, extras included."""
    try:
        requirements = importlib.metadata.requires("kvrt") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            LIBRARIES, "kvrt", Mark.BAD, "kvrt runs from a folder and is not installed",
            fix="pip install -e .",
        )  # fmt: skip
        return
    for requirement in requirements:
        needed, extra = REQUIREMENT.match(requirement), EXTRA.search(requirement)
        if needed is not None and not (extra and extra[1] in FOR_DEVELOPERS):
            yield _library(needed[1], needed[2] or "0", extra[1] if extra else "")
    yield from _torch()


def _library(name: str, least: str, extra: str) -> Check:
    needed = f"{name}>={least}" if least != "0" else name
    fix = f"pip install 'kvrt[{extra}]'" if extra else f"pip install '{needed}'"
    missing = Mark.SKIP if extra else Mark.BAD
    use = _use(extra) if extra else "kvrt needs it"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(LIBRARIES, name, missing, f"{name} is not installed ({use})", fix)
    if _numbers(version) < _numbers(least):
        text = f"{name} {version} is older than {least} ({use})"
        return Check(LIBRARIES, name, Mark.WARN if extra else Mark.BAD, text, fix)
    return Check(LIBRARIES, name, Mark.OK, f"{name} {version}", data={"version": version})


def _use(extra: str) -> str:
    """What an extra of kvrt is for. Those of a backend have its name."""
    backends = {entry.name for entry in importlib.metadata.entry_points(group=BACKENDS)}
    return f"only for the {extra} backend" if extra in backends else f"only for kvrt[{extra}]"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _torch() -> Iterator[Check]:
    """Which hardware this build of torch is for, and whether that is the hardware there is."""
    import torch

    builds = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    flavour = next((f"{name} {version}" for name, version in builds.items() if version), "CPU only")
    yield Check(
        LIBRARIES, "torch.build", Mark.OK,
        f"torch is built for: {flavour}; {torch.get_num_threads()} threads",
        data={"build": flavour, **builds},
    )  # fmt: skip
    for vendor, build, platform_name in present_gpus():
        if not builds[build]:
            yield Check(
                LIBRARIES, "torch.build", Mark.WARN,
                f"there is a GPU of {vendor}, but this torch is built for: {flavour}",
                fix=f"install torch's {platform_name} build: https://pytorch.org/get-started/locally",
            )  # fmt: skip


def present_gpus(root: Path = Path("/")) -> list[tuple[str, str, str]]:
    """GPUs on the PCI bus: vendor, the name torch has for it, the platform's name."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor in VENDORS and kind.startswith(DISPLAYS) and VENDORS[vendor] not in found:
            found.append(VENDORS[vendor])
    return found


def environment(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Settings that kvrt or its libraries read, and those that only look like it."""
    ours = sorted(name for name in environ if name.startswith("KVRT_"))
    options = _variables() if set(ours) - SETTINGS else {}
    for name in ours:
        if name in options and is_secret(options[name]):
            yield Check(ENVIRONMENT, name, Mark.OK, f"{name} is set")
        elif name in SETTINGS or name in options:
            value = without_passwords(environ[name])
            yield Check(ENVIRONMENT, name, Mark.OK, f"{name}={value}")
        elif not SERVICE.fullmatch(name):
            known = ", ".join(sorted(SETTINGS))
            text = (
                f"{name} is not a variable that kvrt reads; those are {known}, and"
                " KVRT_COMMAND_OPTION for an option of a command"
            )
            like = nearest(name, [*SETTINGS, *options])
            fix = f"unset {name}" + (f"; did you mean {like}?" if like else "")
            yield Check(ENVIRONMENT, name, Mark.WARN, text, fix=fix)
    yield _hub(environ)
    yield _quantised(environ)


def _variables() -> Mapping[str, click.Parameter]:
    from kvrt_cli.main import cli  # loads this module when it is asked for the doctor

    return variables(cli)


def _quantised(environ: Mapping[str, str]) -> Check:
    folder = weights_folder(environ)
    sizes = [path.stat().st_size for path in folder.glob("*")] if folder.is_dir() else []
    text = f"quantised weights are kept in {folder}: {len(sizes)}, {format_bytes(sum(sizes))}"
    return Check(
        ENVIRONMENT, "quantised", Mark.OK,
        f"{text}; delete it to have the space" if sizes else text,
        data={"folder": str(folder), "files": len(sizes), "bytes": sum(sizes)},
    )  # fmt: skip


def _hub(environ: Mapping[str, str]) -> Check:
    cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    home = Path(environ.get("HF_HOME") or Path(cache) / "huggingface")
    folder = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    there = next(part for part in (folder, *folder.parents) if part.exists())
    if not os.access(there, os.W_OK):
        return Check(
            ENVIRONMENT, "hub", Mark.WARN, f"downloads cannot be kept: {folder} is not writable",
            fix="export HF_HOME=FOLDER, with a folder of yours",
        )  # fmt: skip
    token = "set" if environ.get("HF_TOKEN") or (home / "token").exists() else "not set"
    offline = ", offline" if environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    free = shutil.disk_usage(there).free
    return Check(
        ENVIRONMENT, "hub", Mark.OK,
        f"downloads go to {folder}, {format_bytes(free)} free; token {token}{offline}",
        data={"folder": str(folder), "free_bytes": free},
    )  # fmt: skip
