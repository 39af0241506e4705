"""What users ask stays between them and the model: it is in no log and in no error."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvrt.errors import DeviceError, KvrtError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import Break
from .faulty import Faulty

CANARY = "xyzzy-canary"
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Errors that callers saw. At the end neither they nor the log may name the canary."""
    errors: list[str] = []
    caplog.set_level(logging.INFO)
    yield errors
    assert errors
    whole = logging.Formatter()  # tracebacks included
    lines = [whole.format(record) for record in caplog.get_records("call")]
    assert not [line for line in lines + errors if CANARY in line]


def said(error: KvrtError) -> str:
    return f"{error!r} {error} {error.fix}"


@pytest.mark.promise("P41")
def test_bad_requests_are_refused_without_quoting_them(told: list[str]) -> None:
    with Runtime("tiny", backend="cpu", max_model_len=64) as runtime:
        refused: list[Callable[[], object]] = [
            lambda: runtime.stream(CANARY * 100, SHORT),
            lambda: runtime.stream([CANARY], SHORT),  # type: ignore[list-item]
            lambda: runtime.stream([{"role": "user", "content": CANARY}], SHORT),
            lambda: runtime.stream("def", SHORT, cache_salt=f"{CANARY}\n"),
            lambda: runtime.stream("def", SHORT, cache_salt=CANARY * 100),
            lambda: SamplingParams(stop=[CANARY * 1000]),
            lambda: SamplingParams(stop=[[CANARY]]),  # type: ignore[list-item]
        ]
        for refuse in refused:
            with pytest.raises(KvrtError) as caught:
                refuse()
            told.append(said(caught.value))
        result = runtime.generate(CANARY * 100)[0]
        assert result.error is not None
        told.append(said(result.error))


@pytest.mark.promise("P41")
def test_a_service_that_saves_fails_and_ends_says_nothing_of_what_it_was_asked(
    told: list[str], tmp_path: Path, break_device: Break
) -> None:
    devices: list[Faulty] = []

    def wrapped(device: object) -> Faulty:
        devices.append(Faulty(device))  # type: ignore[arg-type]
        return devices[-1]

    break_device(wrapped)
    for _ in range(2):
        runtime = Runtime("tiny", backend="cpu", cache_dir=tmp_path / "kv", offload="host:8MiB")
        params = SamplingParams(max_tokens=4, stop=[CANARY])
        runtime.generate([f"{CANARY} " * 40, CANARY], params, cache_salt=CANARY)
        runtime.close()
    runtime = Runtime("tiny", backend="cpu", memory_limit="64MiB")
    devices[-1].refused["attention.plan"] = DeviceError("the device is gone")
    result = runtime.generate(f"{CANARY} " * 40, SHORT, cache_salt=CANARY)[0]
    assert isinstance(result.error, DeviceError)
    told.append(said(result.error))
    runtime.close()
