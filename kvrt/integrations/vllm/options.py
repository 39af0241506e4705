"""What ``kv_connector_extra_config`` may say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kvrt.checks import Checks, Flag, Maybe, Number, Size, Text, Whole, check_options
from kvrt.errors import ConfigError
from kvrt.sharing.share import TERMS, Share

OPTIONS: Checks = {
    "memory_limit": Maybe(Size()),
    "keep": Size(),
    "linger": Number(0, 3600),
    "headroom": Whole(0, 4096),
    "beside_tiers": Flag(),
    "share": Maybe(Text()),
    **{name: check for name, check in TERMS.items() if name not in ("name", "size")},
}
"""Of each option, what it may be."""


@dataclass(frozen=True, slots=True)
class Options:
    """Checked when read.

    Args:
        memory_limit: physical memory for KV blocks: bytes, or a text such as ``4GiB``. None: as
            much as vLLM has blocks for.
        keep: of it, what may stay under blocks that nobody uses, with what is cached in them.
        linger: seconds for which memory stays once no request is left, unless others are due it.
        headroom: blocks that are ready before running requests need them.
        beside_tiers: `TierSpec` keeps blocks as well, listed before this one in a MultiConnector.
        share: a budget that is shared with other processes; None: with none.
    """

    memory_limit: int | str | None = None
    keep: int | str = 0
    linger: float = 0.5
    headroom: int = 8
    beside_tiers: bool = False
    share: Share | None = None

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """What was given.

        Raises:
            ConfigError: there is no such option, it has a bad value, or it goes not with another.
        """
        if unknown := given.keys() - OPTIONS:
            raise ConfigError(
                f"the connector has no option {', '.join(sorted(unknown))}",
                fix=f"it has {', '.join(OPTIONS)}",
            )
        checked = check_options(OPTIONS, **given)
        own = {name: checked.pop(name) for name in cls.__slots__ if name in checked}
        if (name := own.pop("share", None)) is None:
            if checked:
                raise ConfigError(f"{', '.join(checked)} need a share", fix="name one as share")
            return cls(**own)
        if own.get("keep"):
            raise ConfigError(
                "what is kept while idle cannot be given back to others: keep and share exclude"
                " each other",
                fix="leave keep out",
            )
        called, _, size = name.partition(":")
        return cls(**own, share=Share(name=called, size=size or None, **checked))
