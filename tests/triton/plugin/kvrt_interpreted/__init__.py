"""The Triton kernels under Triton's interpreter, on the make-believe device of `kvrt_null`.

For a process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

import os
from dataclasses import replace

if os.environ.get("TRITON_INTERPRET") != "1":
    raise ImportError("set TRITON_INTERPRET=1 before Python starts")

import kvrt_null
from kvrt_kernels import TRITON_HEAD_DIMS
from kvrt_kernels.triton import TritonAttention, extensions_on

from kvrt.spi import Backend, Capability, Device, DeviceOptions, Extension, Probe
from kvrt_interpreted import narrow

narrow.mend()


class Interpreted(kvrt_null.NullDevice):
    """Host memory, and the kernels as they would be launched on an sm_90."""

    def __init__(self) -> None:
        super().__init__()
        arch, place = "sm_90", "cpu"
        self.info = replace(
            self.info,
            backend="interpreted",
            name="Triton's interpreter",
            arch=arch,
            capabilities=self.info.capabilities | {Capability.TREES},
            kv_formats=(*self.info.kv_formats, "int8", "fp8", "int4"),
            head_dims=TRITON_HEAD_DIMS,
            notes=(),
        )
        self.attention = TritonAttention(arch, place, multiprocessors=2)
        self.extensions = extensions_on(arch, place)

    def extension(self, kind: type[Extension]) -> Extension | None:
        return self.extensions.get(kind)  # type: ignore[return-value]


class InterpretedBackend:
    name = "interpreted"
    spi = 2

    def probe(self) -> Probe:
        return Probe(available=True, detail="1 interpreter", devices=1)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        return Interpreted()


backend: Backend = InterpretedBackend()
