"""Finds backends by the entry points they register, and opens their devices.

    candidates()   who is installed; imports nothing
    examine(c)     import it and ask whether it can run here; never raises
    load(name)     the backend, or the reason why not
    open_device()  an opened device, with its arguments checked

A backend is foreign code until it has answered: whatever it raises while it is imported or probed
is kept beside its name, and one that does not return is given up after a time limit, so that the
others go on working. Nothing is remembered between calls.
"""

import difflib
import importlib.metadata
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from kvrt.errors import (
    BackendUnavailable,
    ConfigError,
    ContractError,
    DeviceError,
    KvrtError,
    in_one_line,
)
from kvrt.spi import SPI_VERSION, Backend, Device, DeviceOptions, Probe

GROUP = "kvrt.backends"
AUTO = "auto"
OURS = "kvrt"
"""The distribution whose backends `AUTO` takes without a warning."""
LAST_RESORT = "cpu"
"""The backend that `AUTO` takes only when no other can be used: every machine has one."""

PLUGIN_SECONDS = 10.0
"""How long a plug-in may take to be imported, and again to be probed."""

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One registered backend, and what is known of it so far.

    Args:
        name: the name users type.
        distribution: the installed distribution that registers it.
        version: the distribution's version.
        value: what the entry point names, as ``module:attribute``.
        backend: the backend; None before `examine`, and if it cannot be used at all.
        spi: the `SPI_VERSION` it was written for; None if it never said.
        probe: what it answered; None if it was not asked or did not answer.
        error: why it is broken, in one line; empty if it is not.
        cause: the exception behind `error`.
    """

    name: str
    distribution: str
    version: str
    value: str
    backend: Backend | None = None
    spi: int | None = None
    probe: Probe | None = None
    error: str = ""
    cause: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    @property
    def owner(self) -> str:
        """Whose fault it is, for errors that come out of a plug-in."""
        return f"backend {self.name!r} of {self.origin}"

    @property
    def available(self) -> bool:
        """True once examined, if a device can be opened."""
        return not self.error and self.probe is not None and self.probe.available

    @property
    def by_name_only(self) -> bool:
        """True once examined, if `AUTO` must not take it."""
        return self.probe is not None and self.probe.by_name_only

    @property
    def reason(self) -> str:
        """Why it is broken, or else what its probe found; empty before `examine`."""
        detail = self.probe.detail if self.probe else ""
        return self.error or (f"{detail}, by name only" if self.by_name_only else detail)

    @property
    def traceback(self) -> str:
        """The traceback of `cause`; empty if there is none."""
        return "".join(traceback.format_exception(self.cause)) if self.cause else ""


def candidates() -> tuple[Candidate, ...]:
    """Every registered backend, in the order `AUTO` tries them: by name, `LAST_RESORT` last.

    Imports none of them. Two registrations of one name are both broken: neither is the right one.
    """
    found = [_candidate(entry) for entry in importlib.metadata.entry_points(group=GROUP)]
    found.sort(key=lambda c: (c.name == LAST_RESORT, c.name, c.distribution))
    return tuple(_without_clash(one, found) for one in found)


def examine(candidate: Candidate, *, timeout: float = PLUGIN_SECONDS) -> Candidate:
    """Import and probe a candidate: the candidate again, with what came of it. Never raises."""
    imported = _imported(candidate, timeout)
    backend = imported.backend
    if backend is None:
        return imported
    try:
        answer = _limited(lambda: backend.probe(), timeout)
    except _PluginFailed as failure:
        return _broken(imported, "probe()", failure, timeout)
    if not isinstance(answer, Probe):
        problem = f"probe() returned {type(answer).__name__}, not a kvrt.spi.Probe"
        return replace(imported, backend=None, error=problem)
    return replace(imported, probe=answer)


def load(name: str, *, timeout: float = PLUGIN_SECONDS) -> Backend:
    """The backend called `name`, imported but not probed.

    Raises:
        BackendUnavailable: there is none of that name, two distributions claim it, or it is broken
            (its own exception is the cause).
    """
    return _loaded(name, timeout)[1]


def open_device(
    name: str = AUTO,
    index: int = 0,
    options: DeviceOptions = DeviceOptions(),
    *,
    check_layers: bool = True,
    timeout: float = PLUGIN_SECONDS,
) -> Device:
    """Open a device, with `kvrt.wrappers.Checked` in front of it, and `Named` behind that.

    A backend that is asked for by name is opened whatever its probe says: `Backend.open` looks
    again, and knows better.

    `AUTO` takes the first of `candidates` that can be used and may be taken unasked. One it passes
    over is logged with its reason: as a warning if it is broken or could be mended, else (no such
    hardware) as information. What it takes is logged too: as a warning if it is a plug-in of
    others.

    Args:
        name: a backend's name, or `AUTO`.
        index: which of the backend's devices.
        options: how to open it.
        check_layers: see `Checked`.
        timeout: seconds for each plug-in's import, and for its probe.

    Raises:
        ConfigError: `index` is not a whole number from 0.
        BackendUnavailable: the backend is unknown or cannot be used; it lists every candidate with
            its own reason, and the nearest name.
        DeviceError: what it opened is no device as `kvrt.spi` has it.
    """
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ConfigError(f"device index {index!r} is not a whole number from 0 on")
    import kvrt.wrappers  # imports torch, which may be slow: not on the plug-ins' time  # noqa: F401

    if name != AUTO:
        chosen, backend = _loaded(name, timeout)
        return _opened(chosen, backend, index, options, check_layers)
    tried = []
    for candidate in candidates():
        seen = examine(candidate, timeout=timeout)
        if seen.backend is not None and seen.available and not seen.by_name_only:
            try:
                device = _opened(seen, seen.backend, index, options, check_layers)
            except (BackendUnavailable, DeviceError) as error:
                seen = replace(seen, error=str(error), cause=error)
            else:
                _tell_choice(seen)
                return device
        tried.append(seen)
        mendable = bool(seen.error or (seen.probe and seen.probe.fix))
        level = logging.WARNING if mendable else logging.INFO
        log.log(level, "passing over backend %s (%s): %s", seen.name, seen.origin, seen.reason)
    fixes = [_fix_for_auto(one) for one in tried]
    raise BackendUnavailable(
        "no backend can be used on this machine" + _listing(tried),
        fix="; ".join(filter(None, fixes)) or "reinstall kvrt",
    )


def _fix_for_auto(passed_over: Candidate) -> str:
    if passed_over.available and passed_over.by_name_only:
        return f"name it: --backend {passed_over.name}"
    of_probe = passed_over.probe.fix if passed_over.probe else ""
    return of_probe or getattr(passed_over.cause, "fix", "")


# --- looking -----------------------------------------------------------------------------------


def _candidate(entry: importlib.metadata.EntryPoint) -> Candidate:
    metadata = entry.dist.metadata if entry.dist else None
    fields = {key: str(metadata[key]) for key in metadata} if metadata else {}
    return Candidate(
        name=entry.name,
        distribution=fields.get("Name", "an unnamed distribution"),
        version=fields.get("Version", "of no version"),
        value=entry.value,
    )


def _without_clash(one: Candidate, found: list[Candidate]) -> Candidate:
    namesakes = [other for other in found if other.name == one.name]
    if len(namesakes) == 1:
        return one
    owners = " and ".join(f"{other.origin} ({other.value})" for other in namesakes)
    return replace(one, error=f"the name {one.name!r} is registered by {owners}: remove one")


def _find(name: str, timeout: float) -> Candidate:
    registered = candidates()
    for candidate in registered:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in registered]
    near = difflib.get_close_matches(name, [*names, AUTO], n=1)
    raise BackendUnavailable(
        f"there is no backend {name!r}"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + _listing([examine(candidate, timeout=timeout) for candidate in registered]),
        fix=f"choose one of: {', '.join([AUTO, *names])}",
    )


def _listing(examined: list[Candidate]) -> str:
    if not examined:
        return f"; no distribution registers one in the entry-point group {GROUP!r}"
    lines = (
        f"\n  {c.name} ({c.origin}): {'available, ' if c.available else ''}{c.reason}"
        for c in examined
    )
    return ". Installed:" + "".join(lines)


# --- foreign code ------------------------------------------------------------------------------


def _imported(candidate: Candidate, timeout: float) -> Candidate:
    """The candidate with its backend, or with the error that stands in its way."""
    if candidate.error or candidate.backend is not None:
        return candidate
    entry = importlib.metadata.EntryPoint(candidate.name, candidate.value, GROUP)

    def read() -> tuple[Backend, object, object]:
        backend: Backend = entry.load()
        return backend, backend.spi, backend.name

    try:
        backend, spi, name = _limited(read, timeout)
    except _PluginFailed as failure:
        return _broken(candidate, f"importing {candidate.value}", failure, timeout)
    if not isinstance(spi, int):
        return replace(candidate, error=f"its spi version is {spi!r}, not a number")
    if spi != SPI_VERSION:
        problem = (
            f"it was written for version {spi} of the backend interface, "
            f"and this kvrt has version {SPI_VERSION}"
        )
        return replace(candidate, spi=spi, error=problem)
    if name != candidate.name:
        problem = f"it calls itself {name!r} and is registered as {candidate.name!r}"
        return replace(candidate, spi=spi, error=problem)
    return replace(candidate, spi=spi, backend=backend)


def _broken(c: Candidate, doing: str, failure: "_PluginFailed", timeout: float) -> Candidate:
    if failure.cause is None:
        return replace(c, backend=None, error=f"{doing} did not finish in {timeout:g} s")
    problem = f"{doing} raised {in_one_line(failure.cause)}"
    return replace(c, backend=None, error=problem, cause=failure.cause)


def _loaded(name: str, timeout: float) -> tuple[Candidate, Backend]:
    chosen = _imported(_find(name, timeout), timeout)
    if chosen.backend is None:
        raise BackendUnavailable(
            f"{chosen.owner} cannot be used: {chosen.error}",
            fix=f"reinstall or remove {chosen.distribution}",
        ) from chosen.cause
    return chosen, chosen.backend


def _opened(
    chosen: Candidate, backend: Backend, index: int, options: DeviceOptions, layers: bool
) -> Device:
    """A device whose arguments are checked, and whose faults name the plug-in."""
    from kvrt.wrappers import Checked, Named

    owner = chosen.owner
    try:
        opened = backend.open(index, options)
    except KvrtError:
        raise
    except (Exception, SystemExit) as error:
        raise BackendUnavailable(
            f"{owner} failed to open device {index}: {in_one_line(error)}"
        ) from error
    if opened is None:
        raise ContractError(f"{owner}: open() returned None, not a device")
    try:
        device = Checked(Named(opened, owner), layers=layers, owner=owner)
        asked, info = (chosen.name, index), device.info
        if (info.backend, info.index) != asked:
            calls_itself = f"info calls it {info.backend!r}, {info.index!r}"
            raise ContractError(f"{owner}: device {index} was opened, and {calls_itself}")
    except BaseException:
        # What it is not may include a `close`; the first fault is the one to tell.
        with suppress(Exception):
            opened.close()
        raise
    return device


def _tell_choice(chosen: Candidate) -> None:
    """Somebody else's plug-in may have been installed without a thought of what runs by default."""
    level = logging.INFO if chosen.distribution == OURS else logging.WARNING
    text = "running on backend %s (%s), since none was named and it is the first that can be used"
    log.log(level, text, chosen.name, chosen.origin)


class _PluginFailed(Exception):
    """A plug-in raised `cause`, or took too long (None). Ctrl-C of the user is never this."""

    def __init__(self, cause: BaseException | None) -> None:
        self.cause = cause


def _limited(call: Callable[[], Result], seconds: float) -> Result:
    """`call()`, unless it fails. In a daemon thread: one that hangs does not stop the exit."""
    outcome: Future[Result] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="kvrt-plugin", daemon=True).start()
    try:
        error = outcome.exception(seconds)
    except TimeoutError:
        raise _PluginFailed(None) from None
    if error is not None:
        raise _PluginFailed(error)
    return outcome.result()
