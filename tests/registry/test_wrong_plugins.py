"""Whatever a plug-in does wrong, the error names it and its distribution, in one line."""

import importlib
import textwrap
from collections.abc import Callable
from pathlib import Path

import distributions
import pytest
import torch

from kvrt import registry
from kvrt.errors import DeviceError, KvrtError, OutOfMemory
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import DenseOps, Device, GraphCapture

WHOSE = "backend '{name}' of plugin-{name} 1.0"

PLUGIN = """
from dataclasses import replace
import kvrt_null
import torch
from kvrt.spi import Chunk, Probe

class Wrong:
    name, spi = {name!r}, 2

    def probe(self):
        return Probe(True, "1 device", devices=1)

    def open(self, index=0, options=None):
        device = kvrt_null.backend.open(index)
        device.info = replace(device.info, backend=self.name)
        {fault}
        return device

def raises(error):
    def method(*arguments, **named):
        raise error
    return method

def gives(value):
    return lambda *arguments, **named: value

wrong = Wrong()
"""

Row = tuple[str, str]

OPENING: dict[str, Row] = {
    "open_none": ("return None", "open() returned None"),
    "open_number": ("return 5", "the device is int, which lacks"),
    "open_raises": ("raise OSError('cable loose')", "failed to open device 0: OSError: cable"),
    "open_exits": ("raise SystemExit(3)", "failed to open device 0: SystemExit: 3"),
    "no_copier": ("del device.copier", "the device is NullDevice, which lacks copier"),
    "no_map": ("device.memory = object()", "memory is object, which lacks reserve"),
    "info_tuple": ("device.info = ()", "info = (): must be a kvrt.spi.DeviceInfo"),
    "other_name": ("device.info = replace(device.info, backend='other')", "info calls it 'other'"),
    "other_index": (
        "device.info = replace(device.info, index=3)",
        "info calls it 'other_index', 3",
    ),
    "granularity": ("device.info = replace(device.info, granularity=3)", "must be a power of two"),
    "capabilities": (
        "device.info = replace(device.info, capabilities=frozenset({'ALIASING'}))",
        "must be a set of members of kvrt.spi.Capability",
    ),
    "no_dtypes": (
        "device.info = replace(device.info, compute_dtypes=())",
        "info.compute_dtypes = (): must name some of",
    ),
    "odd_weights": (
        "device.info = replace(device.info, weight_dtypes=('float32', 'int3'))",
        "info.weight_dtypes = ('float32', 'int3'): must name some of",
    ),
    "odd_formats": (
        "device.info = replace(device.info, kv_formats=('int3',))",
        "info.kv_formats = ('int3',): must name some of",
    ),
    "no_granularity": ("device.info = replace(device.info, granularity=0)", "a power of two"),
    "granularity_true": ("device.info = replace(device.info, granularity=True)", "power of two"),
    "no_such_torch": (
        "device.info = replace(device.info, torch_device='mychip:0')",
        "info.torch_device = 'mychip:0': torch knows no such device",
    ),
}
"""What is wrong with the device as it is opened, and part of what is said."""

USE: dict[str, Row] = {
    "reserve_number": ("device.memory.reserve = gives(4096)", "reserve() = 4096: must be a"),
    "reserve_raises": ("device.memory.reserve = raises(ValueError('odd'))", "ValueError: odd"),
    "create_number": ("device.memory.create = gives(5)", "create() = 5: must be a kvrt.spi.Chunk"),
    "create_twice": ("device.memory.create = gives(Chunk(0))", "is the handle of a live chunk"),
    "map_raises": ("device.memory.map = raises(ValueError('slot'))", "memory.map() raised Value"),
    "map_exits": ("device.memory.map = raises(SystemExit(1))", "memory.map() raised SystemExit"),
    "tensor_list": ("device.memory.tensor = gives([1, 2])", "tensor() = [1, 2]: must be a tensor"),
    "memory_info": ("device.memory.info = gives((1, 2, 3))", "must be a kvrt.spi.MemoryInfo"),
    "no_buffer": ("device.copier.host_buffer = gives(None)", "host_buffer() = None: must be a"),
    "buffer_elsewhere": (
        "device.copier.host_buffer = gives(torch.empty(64, dtype=torch.uint8, device='meta'))",
        "must be in host memory",
    ),
    "buffer_short": (
        "device.copier.host_buffer = gives(torch.empty(63, dtype=torch.uint8))",
        "the device must give uint8 [64]",
    ),
    "buffer_words": (
        "device.copier.host_buffer = gives(torch.empty(64))",
        "the device must give uint8 [64]",
    ),
    "tensor_elsewhere": (
        "device.memory.tensor = gives(torch.empty(64, device='meta'))",
        "tensor() = float32 [64] with strides [1] on meta: must be on cpu",
    ),
    "tensor_far": (
        "real = device.memory.tensor; device.memory.tensor = lambda *a: real(*a).clone()",
        "must be 1-D and cover the whole",
    ),
    "tensor_short": (
        "real = device.memory.tensor; device.memory.tensor = lambda *a: real(*a)[:-1]",
        "must be 1-D and cover the whole",
    ),
    "tensor_ints": (
        "real = device.memory.tensor; device.memory.tensor = lambda *a: real(*a).view(torch.int32)",
        "must have the dtype float32",
    ),
    "copy_none": ("device.copier.to_host = gives(None)", "copier.to_host() = None: must be a tick"),
    "fence_none": ("device.fence = gives(None)", "fence() = None: must be a ticket"),
    "sync_raises": ("device.synchronize = raises(KeyError('x'))", "synchronize() raised KeyError"),
    "extension": ("device.extension = raises(TypeError('kind'))", "extension() raised TypeError"),
    "half_graphs": ("device.extension = gives(object())", "lacks a method of"),
    "close_raises": ("device.close = raises(ValueError('open'))", "close() raised ValueError"),
}
"""What is wrong with a device that opens, and part of what is said when it is used."""

LONG = "Could not run 'aten::x'\\n" + "a list of all kernels\\n" * 400

RUNNING: dict[str, Row] = {
    "plan_raises": ("device.attention.plan = raises(IndexError('row'))", "raised IndexError: row"),
    "run_raises": (
        f"device.attention.run = raises(NotImplementedError('''{LONG}'''))",
        "raised NotImplementedError: Could not run 'aten::x'",
    ),
}
"""What is wrong with a device that a model is loaded to, and part of what a request is told."""

Install = Callable[[str, Row], str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a backend with a fault; gives the line's beginning that must name it."""

    def install(name: str, row: Row) -> str:
        source = textwrap.dedent(PLUGIN).format(name=name, fault=row[0])
        module = f"plugin_{name}"
        distributions.install(tmp_path, module, {name: f"{module}:wrong"}, source=source)
        metadata = tmp_path / f"{module}-1.0.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace(module, f"plugin-{name}"))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return WHOSE.format(name=name)

    return install


def use(device: Device) -> None:
    """All that the core asks of a device but its kernels."""
    device.extension(DenseOps)  # type: ignore[type-abstract]
    device.extension(GraphCapture)  # type: ignore[type-abstract]
    device.memory.info()
    host = device.copier.host_buffer(64)
    chunks = [device.memory.create() for _ in range(2)]
    span = device.memory.reserve(device.info.granularity)
    device.memory.map(span, 0, chunks[0])
    there = device.memory.tensor(span, "float32")[:16]
    device.copier.to_host(host, there.view(torch.uint8), device.fence()).wait()
    device.synchronize()
    device.close()


def check(error: KvrtError, whose: str, said: str) -> None:
    text = str(error)
    assert whose in text
    assert said in text
    assert len(text.splitlines()) == 1
    assert len(text) < 1000


@pytest.mark.promise("P36")
@pytest.mark.parametrize("name", OPENING)
def test_what_is_wrong_with_an_opened_device_names_its_plugin(name: str, install: Install) -> None:
    whose = install(name, OPENING[name])
    with pytest.raises(KvrtError) as raised:
        registry.open_device(name)
    check(raised.value, whose, OPENING[name][1])


@pytest.mark.promise("P36")
@pytest.mark.parametrize("name", USE)
def test_what_a_device_does_wrong_names_its_plugin(name: str, install: Install) -> None:
    whose = install(name, USE[name])
    device = registry.open_device(name)
    with pytest.raises(DeviceError) as raised:
        use(device)
    check(raised.value, whose, USE[name][1])
    if "raise" in name or "exit" in name:
        assert raised.value.__cause__ is not None, "a traceback would show where"


@pytest.mark.promise("P36")
@pytest.mark.parametrize("name", RUNNING)
def test_what_kernels_raise_names_their_plugin(name: str, install: Install) -> None:
    whose = install(name, RUNNING[name])
    with Runtime("tiny", backend=name) as runtime:
        (result,) = runtime.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert isinstance(result.error, DeviceError)
    check(result.error, whose, RUNNING[name][1])


def test_a_device_that_cannot_be_closed_is_an_error_of_closing(install: Install) -> None:
    whose = install("close_raises", USE["close_raises"])
    runtime = Runtime("tiny", backend="close_raises")
    (result,) = runtime.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert result.error is None
    with pytest.raises(DeviceError) as raised:
        runtime.close()
    check(raised.value, whose, "close() raised ValueError: open")
    runtime.close()  # once is enough


@pytest.mark.parametrize("error", ["MemoryError()", "torch.OutOfMemoryError('8 GiB, please')"])
def test_memory_that_torch_or_python_lacks_is_out_of_memory(error: str, install: Install) -> None:
    whose = install("full", (f"device.memory.create = raises({error})", ""))
    device = registry.open_device("full")
    with pytest.raises(OutOfMemory, match=whose):
        device.memory.create()
    device.close()


def test_auto_passes_over_what_turns_out_to_be_no_device(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    whose = install("a_tuple", OPENING["info_tuple"])  # the first of all names, alphabetically
    registry.open_device().close()
    assert f"{whose}: info = ()" in caplog.text
