"""The rotary embedding that a config.json describes, read as transformers reads it.

It has two spellings: ``rope_theta`` beside ``rope_scaling``, and the ``rope_parameters`` of
transformers 5. Where both are there, ``rope_scaling`` counts, which somebody added by hand.
"""

import math
from dataclasses import replace
from typing import Protocol, cast

from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import RopeKind, RopeSpec

MAX_POSITIONS = 1 << 28
OTHERWISE = {"su": "longrope", "mrope": "default"}
"""First names of kinds, and one that has three positions for a token: of text, all are the same."""

LOCAL = ("full_attention", "sliding_attention")
"""Where both kinds of layers have a rotation of their own: the names of its sections."""

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class Rotated(Protocol):
    """What a family says of its rotation; see `family.Family`."""

    @property
    def theta(self) -> float: ...

    @property
    def local_theta(self) -> float | None: ...

    @property
    def stretched(self) -> bool: ...

    @property
    def partial(self) -> float | None: ...

    @property
    def stretched_base(self) -> bool: ...


def trained_positions(rope: RopeSpec, family: Rotated, positions: int) -> RopeSpec:
    """The rotation of a model that is meant for `positions`, knowing how many it was trained with.

    They are those unless its family says how far linear scaling reaches.
    """
    if rope.kind != "linear" or not family.stretched:
        return rope
    return replace(rope, original_positions=int(positions / rope.factor))


def read_ropes(
    fields: Fields, family: Rotated, head_dim: int, max_positions: int, dims: int = 0
) -> tuple[RopeSpec, ...]:
    """The rotary embeddings of a model: of the layers that see all, and of those with a window
    where that is another; what is not known is refused by name.

    Args:
        fields: the config.json.
        family: what it belongs to.
        head_dim: width of a head.
        max_positions: ``max_position_embeddings``.
        dims: so many dimensions are rotated, whatever the file says of it; 0: it says it.
    """

    def read(section: Fields | None, theta: float) -> RopeSpec:
        own = dims or _dims(fields, section, family.partial, head_dim)
        rope = _read(fields, section, theta, family, head_dim, own, max_positions)
        return trained_positions(rope, family, max_positions)

    section = section_of(fields)
    if family.local_theta is None:
        return (read(section, family.theta),)
    if section is None or not any(map(section.holds_object, LOCAL)):
        theta = fields.number("rope_local_base_freq", 1.0, 1e15, family.local_theta)
        whole = read(section, family.theta)
        return whole, RopeSpec(theta, dims=whole.dims)
    own = [section.section(kind) if section.has(kind) else None for kind in LOCAL]
    return read(own[0], family.theta), read(own[1], family.local_theta)


def _read(
    fields: Fields,
    section: Fields | None,
    default_theta: float,
    family: Rotated,
    head_dim: int,
    dims: int,
    max_positions: int,
) -> RopeSpec:
    theta = _theta(fields, section, default_theta)
    if section is None:
        return RopeSpec(theta, dims=dims)
    key = "rope_type" if "rope_type" in section else "type"
    kind = section.text(key, "default")
    kind = OTHERWISE.get(kind, kind)
    if kind not in KINDS:
        raise section.error(key, f"is {shown(kind)}; supported are {', '.join(KINDS)}")
    for field in section.names():
        if section.holds_object(field):
            raise section.error(field, "is a rotation of its own, which is not supported")
    if kind == "default":
        return RopeSpec(theta, dims=dims)
    original = max_positions
    if kind in ("llama3", "yarn", "longrope"):
        name = "original_max_position_embeddings"
        original = section.integer(name, 1, MAX_POSITIONS, original)
        original = fields.integer(name, 1, MAX_POSITIONS, original)  # beside, it goes before
    without = kind == "longrope" or (kind == "yarn" and "factor" in section)
    if without and not section.has("factor"):
        factor = max_positions / original
    else:
        factor = section.number("factor", 1.0, 1e6)
    rope = RopeSpec(theta, cast(RopeKind, kind), factor, original, dims=dims)
    if kind == "llama3":
        return _llama3(section, rope)
    if kind == "yarn":
        return _yarn(section, rope)
    if kind == "longrope":
        return _longrope(section, rope, head_dim)
    if kind == "dynamic":
        width = rope.width(head_dim)
        if width <= 2:
            raise section.error(key, "is dynamic, which needs heads wider than 2")
        if family.stretched_base and section.has("alpha"):
            alpha = section.number("alpha", 1e-6, 1e9)
            return RopeSpec(theta * alpha ** (width / (width - 2)), dims=dims)
    return rope


def section_of(fields: Fields) -> Fields | None:
    """What says how rotation is stretched, where anything does."""
    for name in ("rope_scaling", "rope_parameters"):
        if fields.has(name) and (section := fields.section(name)).names():
            return section
    return None


def _theta(fields: Fields, section: Fields | None, default: float) -> float:
    """The base, from the section that counts, or beside it.

    Where that is ``rope_scaling`` and neither names a base, it is that of ``rope_parameters``, in
    which transformers 5 saves it. transformers itself (5.23) takes its default of 10,000 then: the
    model was trained with none such, and its text would be noise.
    """
    places = [place for place in (section, fields) if place is not None]
    if fields.has("rope_parameters"):
        places.append(fields.section("rope_parameters"))
    place = next((place for place in places if "rope_theta" in place), fields)
    return place.number("rope_theta", 1.0, 1e15, default)


def _dims(fields: Fields, section: Fields | None, partial: float | None, head_dim: int) -> int:
    """How many dimensions of a head are rotated; 0: all."""
    places = [fields] if fields.has("partial_rotary_factor") else []
    if section is not None and "partial_rotary_factor" in section:
        places.append(section)
    if partial is None:
        for place in places:
            if place.number("partial_rotary_factor", 0.0, 1.0) != 1.0:
                raise place.error("partial_rotary_factor", "other than 1 is not supported")
        return 0
    if fields.has("rotary_dim") and not places:  # MiniMax's name for it, in dimensions
        partial = fields.integer("rotary_dim", 2, head_dim) / head_dim
    share = places[-1].number("partial_rotary_factor", 0.0, 1.0) if places else partial
    dims = int(head_dim * share)
    if dims < 2 or dims % 2:
        raise (places or [fields])[-1].error(
            "partial_rotary_factor", f"is {share:g}: of {head_dim} dimensions, it makes {dims}"
        )
    return dims if dims < head_dim else 0


def _llama3(section: Fields, rope: RopeSpec) -> RopeSpec:
    low = section.number("low_freq_factor", 1e-6, 1e6)
    high = section.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise section.error("high_freq_factor", f"is {high:g}; it must exceed low_freq_factor")
    return replace(rope, low_freq_factor=low, high_freq_factor=high)


def _longrope(section: Fields, rope: RopeSpec, head_dim: int) -> RopeSpec:
    pairs = rope.width(head_dim) // 2

    def divisors(name: str) -> tuple[float, ...]:
        found = section.numbers(name, 1e-6, 1e6)
        if len(found) != pairs:
            raise section.error(name, f"has {len(found)} numbers for {pairs} rotated pairs")
        return tuple(found)

    if section.has("short_mscale"):  # PhiMoE's name for it, for short texts and for long ones
        sharpened = section.number("short_mscale", 1e-6, 1e6)
        if section.number("long_mscale", 1e-6, 1e6) != sharpened:
            raise section.error("long_mscale", "other than short_mscale is not supported")
    elif section.has("attention_factor"):
        sharpened = section.number("attention_factor", 1e-6, 1e6)
    elif rope.factor > 1 and rope.original_positions > 1:
        sharpened = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_positions))
    else:
        sharpened = 1.0
    return replace(
        rope,
        divisors=divisors("short_factor"),
        long_divisors=divisors("long_factor"),
        attention_factor=sharpened,
    )


def _yarn(section: Fields, rope: RopeSpec) -> RopeSpec:
    def optional(name: str, low: float) -> float | None:
        return section.number(name, low, 1e6) if section.has(name) else None

    fast = optional("beta_fast", 1e-6) or 32.0
    slow = optional("beta_slow", 1e-6) or 1.0
    if fast <= slow:
        raise section.error("beta_fast", f"is {fast:g}; it must exceed beta_slow")
    if rope.theta <= 1.0:
        raise section.error("rope_theta", "must exceed 1 for yarn")
    sharpened = optional("attention_factor", 1e-6)
    if sharpened is None:
        # Equation 22 of arXiv 2309.00071: logits are sharpened as the context is stretched. The
        # two scales count only together.
        over, under = optional("mscale", 0.0), optional("mscale_all_dim", 0.0)
        scales = (over, under) if over and under else (1.0, 0.0)
        above, below = (0.1 * scale * math.log(rope.factor) + 1.0 for scale in scales)
        sharpened = above / below
    return replace(
        rope,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=sharpened,
        truncate=section.flag("truncate", True),
    )
