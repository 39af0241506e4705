"""What is to be done around an encoder, by the files that sentence-transformers writes.

modules.json                        the steps: the model, pooling, matrices, perhaps normalisation
1_Pooling/config.json               how token states become one vector
2_Dense/config.json                 a matrix that is multiplied by it, which is beside it
sentence_bert_config.json           how long a text may be
config_sentence_transformers.json   what is put before texts, by names such as ``query``
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kvrt.errors import ModelError
from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.files.jsonfile import Fields, read_list, read_object, shown

Pooling = Literal["cls", "mean", "max", "sqrt", "weighted", "last"]
"""The first token's state; the mean or the largest of all tokens'; their sum over the square root
of their number; their mean, a token at place n counting n times; the last token's."""

POOLINGS = get_args(Pooling)

STEPS = ("Transformer", "Pooling", "Dense", "Normalize")
ORDER = re.compile("Transformer Pooling( Dense)*( Normalize)?")

MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "sqrt",
    "pooling_mode_weightedmean_tokens": "weighted",
    "pooling_mode_lasttoken": "last",
}
"""By the flags of a Pooling's config.json."""

NAMES: Mapping[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "sqrt",
    "weightedmean": "weighted",
    "lasttoken": "last",
}
"""By the one name that later ones have in place of flags."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model's texts become vectors.

    Args:
        pooling: of token states.
        normalize: vectors to the length 1.
        longest: tokens of a text, if the files say it.
        prompts: what is put before texts, by name.
        prompt: the name of the one for texts that name none.
        dense: the folders of matrices that a vector is multiplied by, in their order.
        without_prompt: the states of the prompt's tokens are not pooled.
    """

    pooling: Pooling
    normalize: bool = True
    longest: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    dense: tuple[Path, ...] = ()
    without_prompt: bool = False


def read_recipe(folder: Path, otherwise: Pooling) -> Recipe:
    """The recipe of a model.

    Args:
        folder: of its files.
        otherwise: the pooling where no file says it; vectors are normalised then.

    Raises:
        ModelError: a file is damaged, or asks for what is not supported; the message says what.
    """
    pooling, normalize = otherwise, True
    dense: tuple[Path, ...] = ()
    without_prompt = False
    if (modules := folder / "modules.json").exists():
        steps = _steps(modules)
        path = folder / steps["Pooling"][0] / "config.json"
        pooling = _pooling(path)
        without_prompt = not Fields(str(path), read_object(path)).flag("include_prompt", True)
        normalize = "Normalize" in steps
        dense = tuple(folder / name for name in steps.get("Dense", ()))
    longest = None
    if (path := folder / "sentence_bert_config.json").exists():
        fields = Fields(str(path), read_object(path))
        if fields.has("max_seq_length"):
            longest = fields.integer("max_seq_length", 1, MAX_POSITIONS)
    prompts: dict[str, str] = {}
    prompt = None
    if (path := folder / "config_sentence_transformers.json").exists():
        fields = Fields(str(path), read_object(path))
        if fields.has("prompts"):
            section = fields.section("prompts")
            prompts = {name: section.text(name) for name in section.names()}
        if fields.has("default_prompt_name"):
            prompt = fields.text("default_prompt_name")
            if prompt not in prompts:
                raise fields.error("default_prompt_name", f"is {shown(prompt)}, which has no text")
    return Recipe(pooling, normalize, longest, prompts, prompt, dense, without_prompt)


def _steps(path: Path) -> dict[str, list[str]]:
    """The folders of the steps' files, by what kinds of steps they are."""
    found: dict[str, list[str]] = {}
    kinds: list[str] = []
    for fields in read_list(path):
        kind = fields.text("type").rpartition(".")[2]
        if kind not in STEPS:
            raise fields.error("type", f"is {shown(kind)}; supported are {', '.join(STEPS)}")
        name = fields.text("path")
        if name and Path(name).name != name:
            raise fields.error("path", f"is {shown(name)}; expected a folder beside the file")
        found.setdefault(kind, []).append(name)
        kinds.append(kind)
    if not ORDER.fullmatch(" ".join(kinds)):
        raise ModelError(
            f"{path}: has the steps {shown(kinds)}; supported are {', '.join(STEPS)}, in this"
            " order, of which the last two may be left out and Dense be there several times"
        )
    return found


def _pooling(path: Path) -> Pooling:
    fields = Fields(str(path), read_object(path))
    if fields.holds_text("pooling_mode"):
        name = fields.text("pooling_mode")
        if name not in NAMES:
            raise fields.error(
                "pooling_mode", f"is {shown(name)}; supported are {', '.join(NAMES)}"
            )
        return NAMES[name]
    chosen = [mode for flag, mode in MODES.items() if fields.flag(flag, False)]
    if len(chosen) != 1:
        raise ModelError(
            f"{path}: asks for {len(chosen)} kinds of pooling; supported is one of "
            + ", ".join(MODES)
        )
    return chosen[0]
