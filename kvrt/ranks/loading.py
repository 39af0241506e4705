"""The model that a runtime's options ask for, on any rank."""

from collections.abc import Callable
from pathlib import Path

from kvrt.config import RuntimeConfig, weights_folder
from kvrt.model.loader import Model, load_model
from kvrt.model.progress import Progress
from kvrt.model.shard import WHOLE, Shard, Split
from kvrt.model.spec import ModelSpec
from kvrt.spi import Device, DType


def load(
    config: RuntimeConfig,
    device: Device,
    *,
    progress: Progress | None = None,
    offload_experts: int | None = None,
    check_room: Callable[[ModelSpec, DType, int], None] = lambda *_: None,
    shard: Shard = WHOLE,
    join: Callable[[], Split] | None = None,
) -> Model:
    """See `kvrt.model.loader.load_model`.

    Args:
        offload_experts: bytes.
    """
    return load_model(
        config.model,
        device,
        dtype=config.dtype,
        load_format=config.load_format,
        model_impl=config.model_impl,
        quantize=config.quantize,
        quantized_dir=_quantized_dir(config),
        offload_experts=offload_experts,
        max_model_len=config.max_model_len,
        offline=config.offline,
        revision=config.revision,
        progress=progress,
        seed=config.seed or 0,
        max_images=config.max_images,
        predictor=config.predicts,
        check_room=check_room,
        shard=shard,
        join=join,
    )


def _quantized_dir(config: RuntimeConfig) -> Path | None:
    if config.quantized_dir is None:
        return None
    named = Path(config.quantized_dir)
    return weights_folder() if named == Path("auto") else named
