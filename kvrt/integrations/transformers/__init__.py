"""transformers' `generate` over kvrt's pages, by what transformers documents for others.

    from kvrt.integrations.transformers import KvrtCache

    model.set_attn_implementation("kvrt")
    with KvrtCache(model.config) as cache:
        model.generate(**inputs, past_key_values=cache, num_beams=4)

Importing this registers the attention, and the masks that it takes, as ``kvrt``.
"""

from kvrt.integrations.transformers.attention import register
from kvrt.integrations.transformers.cache import NAME, KvrtCache

__all__ = ["NAME", "KvrtCache", "register"]

register()
