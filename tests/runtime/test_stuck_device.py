"""A device call that never returns, as a driver's sometimes do: nobody waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kvrt.engine.worker
from kvrt.errors import DeviceError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Device
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime

LONG = SamplingParams(max_tokens=400, ignore_eos=True)
PROMPT = list(range(40))


class Stuck(Wrapper):
    """From when it is told to, calls of one method wait until they are let go.

    Args:
        name: of the method.
    """

    def __init__(self, inner: Device, name: str) -> None:
        super().__init__(inner)
        self._name = name
        self.sticks = False
        self.stuck, self.let_go, self.closed = (threading.Event() for _ in range(3))

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        if name == self._name and self.sticks:
            self.stuck.set()
            self.let_go.wait()
        return call(*args, **kwargs)

    def close(self) -> None:
        super().close()
        self.closed.set()


@pytest.fixture(params=["memory.create", "attention.plan", "fence"])
def device(
    request: pytest.FixtureRequest, break_device: Break, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Stuck]]:
    """The device of the next runtime, once there is one; in the end it goes on after all."""
    devices: list[Stuck] = []

    def wrapped(inner: Device) -> Stuck:
        devices.append(Stuck(inner, request.param))
        return devices[0]

    break_device(wrapped)
    monkeypatch.setattr(kvrt.engine.worker, "LAST_PAGE_S", 0.1)
    yield devices
    devices[0].let_go.set()
    assert devices[0].closed.wait(20), "the engine's thread came to its end"


def stuck(make_runtime: MakeRuntime, device: list[Stuck]) -> Runtime:
    """A runtime whose device does not return from what a first request needs."""
    runtime = make_runtime(prefix_cache=False)
    runtime.generate([PROMPT], SamplingParams(max_tokens=2))
    device[0].sticks = True
    return runtime


@pytest.mark.promise("P17")
def test_whoever_waits_gets_an_error_when_the_runtime_is_closed(
    make_runtime: MakeRuntime, device: list[Stuck], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = stuck(make_runtime, device)
    streams = [runtime.stream([n] * 300, LONG) for n in range(4)]
    assert device[0].stuck.wait(20)
    with ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(stream.wait) for stream in streams]
        saving = threads.submit(runtime.save_cache, tmp_path / "saved")
        runtime.abort(streams[1].request_id)
        assert runtime.busy
        assert runtime.stats().steps > 0
        assert not any(future.done() for future in waiting)
        begun = time.monotonic()
        runtime.close(timeout=0.2)
        errors = [future.result(timeout=20).error for future in waiting]
        assert isinstance(saving.exception(timeout=20), DeviceError)
        assert time.monotonic() - begun < 5
    assert all(isinstance(error, DeviceError) for error in errors)
    assert "did not return within 0.2 s" in str(errors[0])
    assert any("its memory is not given back" in record.message for record in caplog.records)
    with pytest.raises(DeviceError):
        runtime.stream(PROMPT, LONG)


@pytest.mark.promise("P17")
def test_a_device_that_comes_back_late_is_closed_properly(
    make_runtime: MakeRuntime, device: list[Stuck]
) -> None:
    runtime = stuck(make_runtime, device)
    stream = runtime.stream([7] * 300, LONG)
    assert device[0].stuck.wait(20)
    runtime.close(timeout=0.1)
    first = stream.wait()
    device[0].let_go.set()
    assert device[0].closed.wait(20)
    assert stream.wait() is first
