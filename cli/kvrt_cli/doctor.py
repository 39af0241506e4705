"""``kvrt doctor``: what works on this machine, and how to mend the rest."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

import kvrt
from kvrt_cli.checks.check import Check, Checks, Mark, contained
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Console

    from kvrt.registry import Candidate

GROUPS = ("system", "python", "libraries", "environment", "backends", "devices")
STYLES = {Mark.OK: "green", Mark.WARN: "yellow", Mark.BAD: "bold red", Mark.SKIP: "dim"}
SECONDS = 60.0
"""How long a group may take for its next check before it counts as hanging, if nothing is said."""


@click.command("doctor", short_help="What works on this machine, and how to mend the rest.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Show details, and tracebacks of what failed.")
@click.option("--strict", is_flag=True, help="Exit with 1 for what is worth mending, too.")
@click.option(
    "--only",
    metavar="NAME,...",
    help=f"Only these groups ({', '.join(GROUPS)}) or backends.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86_400),
    default=SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a group may take for its next check; an emulated machine needs more.",
)
@color_option
@click.pass_obj
def doctor(
    terminal: Terminal,
    /,
    as_json: bool,
    verbose: bool,
    strict: bool,
    only: str | None,
    timeout: float,
) -> None:
    """Check this machine, the installation and every backend.

    Each device that can be opened is proved by using it: memory is reserved, mapped, written, read
    back, unmapped, and seen to return to the system; attention is compared with plain arithmetic;
    bandwidth and latencies are measured.

    \b
    [ok]  works
    [!]   works, and is worth mending
    [x]   is broken
    [-]   is not there, cannot be checked, or is only to be known

    Exits with 1 if something is broken.
    """
    found: list[Check] = []
    console = terminal.console(sys.stdout)
    for check in _checks(_names(only), timeout):
        if not as_json:
            print_check(
                console,
                check,
                new_group=not found or found[-1].group != check.group,
                verbose=verbose,
            )
        found.append(check)
    failed = {Mark.BAD, Mark.WARN} if strict else {Mark.BAD}
    code = 1 if any(check.mark in failed for check in found) else 0
    if as_json:
        terminal.json(_report(found, code), indent=2)
    else:
        console.print(f"\n{_summary(found)}", soft_wrap=True)
    click.get_current_context().exit(code)


# --- which checks --------------------------------------------------------------------------------


def _names(only: str | None) -> set[str]:
    """The names of ``--only``; empty: all. Raises a usage error for one that does not exist."""
    from kvrt.registry import candidates

    names = {name.strip() for name in (only or "").split(",") if name.strip()}
    backends = [candidate.name for candidate in candidates()]
    for name in sorted(names):
        if name not in GROUPS and name not in backends:
            known = ", ".join(dict.fromkeys([*GROUPS, *backends]))
            raise click.UsageError(f"--only {name}: there is no such group; choose from {known}")
    return names


def _checks(names: set[str], seconds: float) -> Iterator[Check]:
    from kvrt_cli.checks import software, system

    plain: dict[str, Checks] = {
        "system": system.system,
        "python": software.python,
        "libraries": software.libraries,
        "environment": software.environment,
    }
    for group, checks in plain.items():
        if not names or group in names:
            yield from contained(group, checks, seconds=seconds)
    if not names or names - set(plain):
        yield from _backend_checks(names, seconds)


def _backend_checks(names: set[str], seconds: float) -> Iterator[Check]:
    from kvrt.registry import candidates, examine
    from kvrt_cli.checks import backends, device

    def wanted(candidate: "Candidate", group: str) -> bool:
        return not names or group in names or candidate.name in names

    examined = [
        examine(candidate)
        for candidate in candidates()
        if wanted(candidate, "backends") or wanted(candidate, "devices")
    ]
    listed = [candidate for candidate in examined if wanted(candidate, "backends")]
    if listed or not names:
        judge = partial(backends.backends, listed, whole=not names or "backends" in names)
        yield from contained("backends", judge, seconds=seconds)
    for candidate in examined:
        if candidate.available and candidate.probe and wanted(candidate, "devices"):
            for index in range(candidate.probe.devices):
                prove = partial(device.prove, candidate.name, index)
                yield from contained(f"{candidate.name}:{index}", prove, seconds=seconds)


# --- what is printed -----------------------------------------------------------------------------


def print_check(console: "Console", check: Check, *, new_group: bool, verbose: bool) -> None:
    """One check. rich gets its parts as plain text: [cuda] in a command must not be markup."""
    from rich.text import Text

    if new_group:
        console.print(Text(f"\n{check.group}", style="bold"))
    mark = f"[{check.mark.value}]"
    line = Text("  ").append(f"{mark:<5}", style=STYLES[check.mark]).append(check.text)
    console.print(line, soft_wrap=True)
    if check.fix:
        console.print(
            Text("       ").append("fix: ", style="bold").append(check.fix), soft_wrap=True
        )
    if verbose and check.details:
        for detail in check.details.rstrip().splitlines():
            console.print(Text(f"       {detail}", style="dim"), soft_wrap=True)


def _summary(found: Iterable[Check]) -> str:
    marks: Counter[Mark] = Counter()
    groups: dict[str, None] = {}
    for check in found:
        marks[check.mark] += 1
        if check.mark in (Mark.BAD, Mark.WARN):
            groups[check.group] = None
    if not groups:
        return f"No problems found in {marks.total()} checks: kvrt is ready."
    verdict = f"{marks[Mark.BAD]} broken, {marks[Mark.WARN]} worth mending"
    many = "categories" if len(groups) > 1 else "category"
    return f"Found issues in {len(groups)} {many} ({', '.join(groups)}): {verdict}."


def _report(found: Sequence[Check], code: int) -> dict[str, Any]:
    return {
        "kvrt": kvrt.__version__,
        "exit_code": code,
        "summary": _summary(found),
        "checks": [
            {
                "group": check.group,
                "name": check.name,
                "mark": check.mark.value,
                "text": check.text,
                **({"fix": check.fix} if check.fix else {}),
                **({"details": check.details} if check.details else {}),
                **({"data": dict(check.data)} if check.data else {}),
            }
            for check in found
        ],
    }
