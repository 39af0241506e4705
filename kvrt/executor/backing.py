"""The memory under the pages of a group: the span, and the chunks mapped in it."""

import torch
from torch import Tensor

from kvrt.errors import ConfigError
from kvrt.executor.mapped import Mapped
from kvrt.executor.pool import ChunkPool
from kvrt.kv.pages.geometry import Geometry
from kvrt.spi import Device, DeviceInfo, PageLayout, Span, StateLayout, VirtualMemory

_NAN_BYTE = 0xFF
"""What is read of such bytes is NaN in every format of KV pages."""


def geometry_of(layout: PageLayout, info: DeviceInfo, pages: int) -> Geometry:
    """Pages of a layout over the chunks of a device.

    Args:
        pages: how many there are to be, the null page included. If the device could never hold
            them, there are as many as it could.

    Raises:
        ConfigError: the device does not keep keys and values in that format.
    """
    if layout.format not in info.kv_formats:
        raise ConfigError(
            f"{info.backend} cannot keep keys and values in {layout.format}",
            fix=f"set kv_cache_dtype to one of {', '.join(info.kv_formats)}",
        )
    most = max(2, info.total_bytes // layout.page_bytes + 1)
    return Geometry(layout.page_bytes, layout.page_size, info.granularity, min(pages, most))


def kv_tensor(memory: VirtualMemory, span: Span, layout: PageLayout) -> Tensor:
    """The KV tensor over a whole span: 1-D, of `layout.storage`."""
    if layout.storage == "uint8":
        return memory.tensor(span, "float32").view(torch.uint8)
    return memory.tensor(span, layout.storage)


class Backing(Mapped):
    """A group's span, and what is where in it.

    Args:
        device: where.
        geometry: pages over chunks of the device's granularity.
        layout: what is where in a page.
        pool: where chunks come from, and go to; all groups of a device share one.

    Raises:
        DeviceError: the addresses cannot be reserved.
    """

    def __init__(
        self, device: Device, geometry: Geometry, layout: PageLayout, pool: ChunkPool
    ) -> None:
        super().__init__(device, geometry.span_bytes, pool)
        self.geometry = geometry
        self.layout = layout
        try:
            self.kv = kv_tensor(device.memory, self.span, layout)
        except BaseException:
            device.memory.release(self.span)
            raise
        self._bytes = self.kv.view(torch.uint8)

    def page(self, page: int) -> Tensor:
        """The bytes of a page: uint8 [page_bytes], in the span's memory."""
        start = page * self.geometry.page_bytes
        return self._bytes[start : start + self.geometry.page_bytes]

    def token(self, page: int, slot: int) -> tuple[Tensor, ...]:
        """One token's keys, and its values, in the span's memory: [layers, kv_heads, slot's items].

        If the format has scales, those of each as well: uint8 [layers, kv_heads, groups, bytes].
        Of layers with a recurrence, what is kept of it: [layers, width].
        """
        layout = self.layout
        if isinstance(layout, StateLayout):
            if layout.of_pages:
                return ()
            first = page * layout.page_stride + slot * layout.width
            shape = layout.layers, layout.width
            return (self.kv.as_strided(shape, (layout.layer_stride, 1), first),)
        shape, strides = (layout.layers, layout.kv_heads), (layout.layer_stride, layout.head_stride)
        blocks = (layout.keys,) if layout.shared else (layout.keys, layout.values)
        pieces: list[Tensor] = []
        for kv, block in enumerate(blocks):
            first, own = page * layout.page_stride + kv * layout.v_offset, block.slot_stride
            pieces.append(self.kv.as_strided((*shape, own), (*strides, 1), first + slot * own))
            if layout.quantization is not None:
                size = layout.quantization.scale_bytes
                pieces.append(
                    self.kv.as_strided(
                        (*shape, block.groups, size),
                        (*strides, layout.page_size * size, 1),
                        first + block.scale_offset + slot * size,
                    )
                )
        return tuple(pieces)

    def chunk(self, index: int) -> Tensor:
        """The bytes of a mapped chunk: uint8 [chunk_bytes], in the span's memory."""
        start = index * self.geometry.chunk_bytes
        return self._bytes[start : start + self.geometry.chunk_bytes]

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """Copy after all compute so far, and before all that follows."""
        if not dst.is_contiguous():  # a token's many small pieces: compute gathers them
            dst.copy_(src)
            return
        self.device.copier.within(dst, src, after=self.device.fence()).wait()

    def scrub(self, dst: Tensor) -> None:
        """Overwrite bytes with NaN, so that whoever reads them shows."""
        dst.fill_(_NAN_BYTE)
