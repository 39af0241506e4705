"""What is where in the pages of a model."""

from kvrt.model.spec import ModelSpec
from kvrt.spi import DType, KVFormat, KVLayout, PageLayout, StateLayout


def layouts_of(spec: ModelSpec, page_size: int, keys: KVFormat, states: DType) -> list[PageLayout]:
    """The pages of each of `ModelSpec.groups`.

    Args:
        page_size: tokens in a page.
        keys: how keys and values are kept.
        states: how recurrences keep what they do: as what the model computes in.
    """
    return [
        StateLayout(
            "float32" if group.exact else states,
            len(group.layers),
            group.width,
            page_size,
            of_pages=group.kept == "border",
        )
        if group.width
        else KVLayout.packed(
            keys,
            layers=len(group.layers),
            kv_heads=spec.heads_of(group.window)[0],
            head_dim=spec.heads_of(group.window)[1],
            page_size=page_size,
            value_dim=spec.latent.rank if spec.latent else spec.heads_of(group.window)[1],
            shared=spec.latent is not None,
        )
        for group in spec.groups
    ]
