"""Which layers of a model have a window and which are rotated, as the families' config.json say."""

from collections.abc import Callable

from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import LayerSpec

MAX_LAYERS = 1 << 11
DEFAULT_WINDOW = 4096
"""Of Mistral, Qwen and those with windows in some layers, where ``sliding_window`` is missing."""

Layers = Callable[[Fields, int], list[LayerSpec]]
"""From the fields of a config.json and a number of layers to these."""


def plain_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Layers that see all and are rotated."""
    return [LayerSpec()] * count


def learned_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Layers that see all, and of which none is rotated."""
    return [LayerSpec(rope=None)] * count


def _window(fields: Fields, default: int) -> int:
    """The window: `default` where the field is missing, none (0) where it is null."""
    if "sliding_window" not in fields:
        return default
    return fields.integer("sliding_window", 1, MAX_POSITIONS) if fields.has("sliding_window") else 0


def _switched_window(fields: Fields, default: int) -> int:
    """The window, where a field of its own turns windows on."""
    return _window(fields, default) if fields.flag("use_sliding_window", False) else 0


def windowed_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Layers with one window, if there is any."""
    return [LayerSpec(window=_window(fields, 0))] * count


def _typed_windows(fields: Fields, count: int, window: int) -> list[int] | None:
    """Windows as ``layer_types`` gives them, or None if it is missing."""
    if not fields.has("layer_types"):
        return None
    types = fields.items("layer_types", str)
    if len(types) != count:
        raise fields.error("layer_types", f"has {len(types)} entries for {count} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.error(
                "layer_types",
                f"names {shown(kind)}; supported are full_attention and sliding_attention",
            )
    if "sliding_attention" in types and not window:
        raise fields.error("layer_types", "has sliding_attention, but no sliding_window is in use")
    return [window if kind == "sliding_attention" else 0 for kind in types]


def qwen_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """The last layers have a window, or those that ``layer_types`` names."""
    return _late_windows(fields, count, _switched_window(fields, DEFAULT_WINDOW))


def late_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Likewise, where nothing else turns the window on."""
    return _late_windows(fields, count, _window(fields, DEFAULT_WINDOW))


def _late_windows(fields: Fields, count: int, window: int) -> list[LayerSpec]:
    first = fields.integer("max_window_layers", 0, MAX_LAYERS, 28)
    windows = _typed_windows(fields, count, window)
    if windows is None:
        windows = [window if layer >= first else 0 for layer in range(count)]
    return [LayerSpec(window=window) for window in windows]


def smollm3_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Some layers are not rotated, and have a window."""
    interval = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS, 4)
    if fields.has("no_rope_layers"):
        # Despite its name, a 1 in the list means that the layer is rotated.
        rotated = fields.items("no_rope_layers", int)
        if len(rotated) < count or not set(rotated) <= {0, 1}:
            raise fields.error("no_rope_layers", f"should be {count} zeros and ones")
    else:
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    window = _switched_window(fields, 0)
    windows = _typed_windows(fields, count, window)
    if windows is None:
        windows = [0 if rotated[layer] else window for layer in range(count)]
    return [LayerSpec(windows[layer], rope=0 if rotated[layer] else None) for layer in range(count)]


def llama4_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Every so many layers, one is not rotated. The others see a chunk of the context only, which
    is as long as the whole one may be here."""
    interval = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS, 4)
    rotated = fields.items("no_rope_layers", int) if fields.has("no_rope_layers") else []
    if not rotated:
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    if len(rotated) < count or not set(rotated) <= {0, 1}:
        raise fields.error("no_rope_layers", f"should be {count} zeros and ones")
    return [LayerSpec(rope=0 if rotated[layer] else None) for layer in range(count)]


def mixed_layers(
    interval: int, layers: int, window: int, local: int = 0, whole: int | None = 0
) -> list[LayerSpec]:
    """Layers with a window, of which every so many, one sees all.

    Args:
        local: which rotation those with a window have.
        whole: which the others have.
    """
    return [
        LayerSpec(window, local) if (layer + 1) % interval else LayerSpec(0, whole)
        for layer in range(layers)
    ]


def mixed(interval: int, local: int = 0, whole: int | None = 0) -> Layers:
    """Reads layers of which every so many, one sees all; see `mixed_layers`."""

    def layers(fields: Fields, count: int) -> list[LayerSpec]:
        window = _window(fields, DEFAULT_WINDOW)
        windows = _typed_windows(fields, count, window)
        if windows is None:
            pattern = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, interval)
            return mixed_layers(pattern, count, window, local, whole)
        return [LayerSpec(w, local) if w else LayerSpec(0, whole) for w in windows]

    return layers


def exaone_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Where there are windows, layers that see all are not rotated."""
    window = _window(fields, DEFAULT_WINDOW)
    if not window:
        return [LayerSpec()] * count
    windows = _typed_windows(fields, count, window)
    if windows is None:
        if fields.has("sliding_window_pattern") and fields.holds_text("sliding_window_pattern"):
            raise fields.error("sliding_window_pattern", "in letters needs layer_types beside it")
        pattern = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, 4)
        return mixed_layers(pattern, count, window, 0, None)
    return [LayerSpec(w, 0 if w else None) for w in windows]
