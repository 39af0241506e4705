"""The tokens that say what is to be written, and those that never are.

An answer begins with ``<|startoftranscript|>``, the language and the task (models of one language
have neither), and ``<|notimestamps|>`` if no times are to stand in it. Each token behind that one
is a time: 20 ms more than the one before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvrt.errors import ModelError
from kvrt.model.config import read_token, read_tokens
from kvrt.model.files.jsonfile import Fields, read_object
from kvrt.model.generation import FILE
from kvrt.model.speech.spec import SpeechSpec
from kvrt.model.tokens.tokenizer import Tokenizer

Task = Literal["transcribe", "translate"]
TASKS: tuple[Task, ...] = ("transcribe", "translate")

NO_TIMES = "<|notimestamps|>"
PREVIOUS = "<|startofprev|>"


@dataclass(frozen=True, slots=True)
class Control:
    """See the module.

    Args:
        start: begins an answer.
        eos: ends it.
        no_times: says that no times are to be written.
        previous: stands before a text that came before; None: the model takes none.
        languages: of each, by its code, such as ``de``; empty: the model writes in one.
        tasks: likewise.
        never: are not written.
        never_first: are not written as the first token.
        latest: the first time is no later, counted from 0; None: any.
        times: how many there are.
    """

    start: int
    eos: int
    no_times: int
    previous: int | None
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    never: tuple[int, ...]
    never_first: tuple[int, ...]
    latest: int | None
    times: int

    @property
    def first_time(self) -> int:
        """The token for the time 0."""
        return self.no_times + 1

    @property
    def no_speech(self) -> int:
        """The token that says that nothing is said."""
        return self.no_times - 1

    def opening(self, language: str | None, task: Task, *, times: bool) -> list[int]:
        """What an answer begins with.

        Args:
            language: its code; None: of a model that has one.
        """
        tokens = [self.start]
        if language is not None:
            tokens += [self.languages[language], self.tasks[task]]
        return tokens if times else [*tokens, self.no_times]


def read_control(folder: Path, spec: SpeechSpec, tokenizer: Tokenizer) -> Control:
    """As generation_config.json has it, or where there is none, config.json.

    Raises:
        ModelError: the file is damaged, or there are no tokens for times.
    """
    path = folder / FILE
    if not path.exists():
        path = folder / "config.json"
    fields = Fields(str(path), read_object(path))
    no_times = read_token(fields, "no_timestamps_token_id", spec.vocab)
    if no_times is None:
        no_times = tokenizer.id_of(NO_TIMES)
    if no_times is None or no_times + 1 >= spec.vocab:
        raise ModelError(
            f"{path}: no_timestamps_token_id is missing, and the tokenizer has no {NO_TIMES} with"
            " times behind it",
            fix="use the files the model came with",
        )
    previous = read_token(fields, "prev_sot_token_id", spec.vocab)
    languages, tasks = dict[str, int](), dict[str, int]()
    if fields.flag("is_multilingual", fields.has("lang_to_id")):
        languages = {
            name.removeprefix("<|").removesuffix("|>"): token
            for name, token in _tokens(fields, "lang_to_id", spec.vocab).items()
        }
        tasks = _tokens(fields, "task_to_id", spec.vocab)
        for task in TASKS:
            if task not in tasks:
                raise fields.error("task_to_id", f"has no token for {task}")
    latest = "max_initial_timestamp_index"
    return Control(
        start=_either(read_token(fields, "decoder_start_token_id", spec.vocab), spec.start),
        eos=next(iter(read_tokens(fields, "eos_token_id", spec.vocab)), spec.eos),
        no_times=no_times,
        previous=tokenizer.id_of(PREVIOUS) if previous is None else previous,
        languages=languages,
        tasks=tasks,
        never=read_tokens(fields, "suppress_tokens", spec.vocab),
        never_first=read_tokens(fields, "begin_suppress_tokens", spec.vocab),
        latest=fields.integer(latest, 0, spec.vocab) if fields.has(latest) else None,
        times=spec.vocab - no_times - 1,
    )


def _either(token: int | None, other: int) -> int:
    return other if token is None else token


def _tokens(fields: Fields, name: str, vocab: int) -> dict[str, int]:
    """Token ids by names.

    Raises:
        ModelError: the field is missing, or one is no token's id.
    """
    section = fields.section(name)
    return {key: section.integer(key, 0, vocab - 1) for key in section.names()}
