"""What a model takes in memory, before it is loaded."""

from dataclasses import dataclass

from kvrt.config import Environment, RuntimeConfig
from kvrt.engine.sizing import check_room, limit_bytes
from kvrt.model.choice import choose
from kvrt.model.files.resolve import resolve
from kvrt.model.source import open_source
from kvrt.registry import open_device
from kvrt.spi import DeviceInfo, DeviceOptions


@dataclass(frozen=True, slots=True)
class Weighed:
    """A model and its device.

    Args:
        need: bytes of its weights and the smallest KV cache.
        smallest: bytes of that cache alone.
        device: that it is for.
        free: bytes of the device that nobody has now.
    """

    need: int
    smallest: int
    device: DeviceInfo
    free: int


def weigh(config: RuntimeConfig) -> Weighed:
    """Weigh a model. It is downloaded if it is a hub id that is not here yet.

    Raises:
        KvrtError: as `kvrt.Runtime`; no memory is taken.
    """
    backend = Environment().backend_for(config.backend)
    device = open_device(backend, config.device, DeviceOptions(threads=config.threads))
    try:
        dummy = config.load_format == "dummy"
        place = resolve(
            config.model,
            want="config" if dummy else "all",
            revision=config.revision,
            offline=config.offline,
        )
        source, experts = open_source(place), config.offload_experts
        choice = choose(
            source,
            None if dummy else source.checkpoint(),
            device,
            dtype=config.dtype,
            quantize=config.quantize,
            max_model_len=config.max_model_len,
            offload_experts=None if experts is None else limit_bytes(experts, device.info),
        )
        weights = choice.weight_bytes
        smallest = check_room(config, device, choice.spec, choice.dtype, weights)
        return Weighed(weights + smallest, smallest, device.info, device.memory.info().free)
    finally:
        device.close()
