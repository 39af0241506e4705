"""What a model's files say about generating with it: generation_config.json."""

from dataclasses import dataclass
from pathlib import Path

from kvrt.model.config import read_tokens
from kvrt.model.files.jsonfile import Fields, read_object
from kvrt.model.spec import ModelSpec

FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The sampling a model's author recommends; None where nothing is said.

    Args:
        eos: the tokens that end an answer.
        sample: False: greedy.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `SamplingParams`.
        file: that says so.
    """

    eos: tuple[int, ...] = ()
    sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    file: str = FILE


def read_generation(folder: Path, spec: ModelSpec) -> GenerationDefaults:
    """The file's content, or what config.json says where there is no such file.

    Raises:
        ModelError: the file is damaged, or a field is out of range.
    """
    path = folder / FILE
    if not path.exists():
        return GenerationDefaults(eos=spec.eos)
    fields = Fields(str(path), read_object(path))

    def number(name: str, low: float, high: float) -> float | None:
        return fields.number(name, low, high) if fields.has(name) else None

    top_k = fields.integer("top_k", -1, 1 << 31) if fields.has("top_k") else None
    return GenerationDefaults(
        eos=read_tokens(fields, "eos_token_id", spec.vocab) or spec.eos,
        sample=fields.flag("do_sample") if fields.has("do_sample") else None,
        temperature=number("temperature", 0.0, 1e4),
        top_k=None if top_k is None else max(top_k, 0),  # -1: all, as 0
        top_p=number("top_p", 0.0, 1.0),
        min_p=number("min_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1e-6, 1e6),
        file=str(path),
    )
