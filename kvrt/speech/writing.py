"""Texts about sounds, some at a time, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from kvrt.model.speech.loader import SpeechModel
from kvrt.speech.choosing import Chooser
from kvrt.speech.pages import Sound, SpeechPages


@dataclass(frozen=True, slots=True)
class Asked:
    """A text that is to be written.

    Args:
        sound: what it is about.
        opening: tokens that it begins with; the one that begins answers is among them.
        times: whether times are written.
    """

    sound: Sound
    opening: list[int]
    times: bool


@dataclass(slots=True)
class Written:
    """What was written.

    Args:
        tokens: behind the opening, without the one that ends them.
        logprobs: of each; and of the one that ends them, if it came.
        no_speech: how likely it is that nothing is said.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    no_speech: float = 0.0


@dataclass(slots=True)
class _Going:
    """A text that is being written."""

    asked: Asked
    row: int
    written: Written
    new: list[int]
    computed: int = 0


class Writer:
    """Writes with one model.

    Args:
        pages: of that model; its owner closes them.
    """

    def __init__(self, model: SpeechModel, pages: SpeechPages) -> None:
        self._model = model
        self._pages = pages
        self._chooser = Chooser(model.control, model.spec.vocab)

    def languages(self, sounds: Sequence[Sound]) -> list[str]:
        """What is spoken in each.

        Raises:
            CapacityError: there is no room for the texts' pages.
        """
        start = self._model.control.start
        going = [self._begin(Asked(sound, [start], times=False)) for sound in sounds]
        try:
            logits = self._forward(going, [[0]] * len(going))
        finally:
            self._pages.end([text.row for text in going])
        return [self._chooser.language(own[0]) for own in logits]

    def write(self, asked: Sequence[Asked]) -> list[Written]:
        """All of them, together.

        Raises:
            CapacityError: there is no room for the texts' pages.
        """
        texts = [self._begin(one) for one in asked]
        try:
            # Whether anything is said is told behind the first token of the answer.
            told = [text.asked.opening.index(self._model.control.start) for text in texts]
            first = [[at, len(text.new) - 1] for at, text in zip(told, texts, strict=True)]
            logits = self._forward(texts, first)
            for text, own in zip(texts, logits, strict=True):
                text.written.no_speech = float(own[0].softmax(0)[self._model.control.no_speech])
            going = self._choose(texts, logits)
            while going:
                going = self._choose(going, self._forward(going, [[0]] * len(going)))
        finally:
            self._pages.end([text.row for text in texts])
        return [text.written for text in texts]

    def _begin(self, asked: Asked) -> _Going:
        return _Going(asked, self._pages.begin(), Written(), asked.opening)

    def _choose(self, texts: Sequence[_Going], logits: Sequence[Tensor]) -> list[_Going]:
        """The next token of each. Returns those that go on; the pages of others are free."""
        going, ended = list[_Going](), list[int]()
        for text, own in zip(texts, logits, strict=True):
            written = text.written
            token, logprob = self._chooser.choose(own[-1], written.tokens, times=text.asked.times)
            written.logprobs.append(logprob)
            if token != self._model.control.eos:
                written.tokens.append(token)
                text.new = [token]
            full = text.computed + 1 >= self._model.spec.positions
            if token == self._model.control.eos or full:
                ended.append(text.row)
            else:
                going.append(text)
        self._pages.end(ended)
        return going

    @torch.inference_mode()
    def _forward(self, texts: Sequence[_Going], wanted: Sequence[list[int]]) -> list[Tensor]:
        """Compute the new tokens of some texts. Of each the logits behind those of them that are
        wanted: float32 [wanted, vocab]."""
        counts = [len(text.new) for text in texts]
        rows, sounds = [text.row for text in texts], [text.asked.sound for text in texts]
        own, about = self._pages.grow(rows, sounds, counts)
        at = [range(text.computed, text.computed + len(text.new)) for text in texts]
        begins = accumulate(counts[:-1], initial=0)
        logits = self._model.decoder.forward(
            torch.tensor([token for text in texts for token in text.new]),
            torch.tensor([position for positions in at for position in positions]),
            own,
            about,
            torch.tensor(
                [begin + one for begin, some in zip(begins, wanted, strict=True) for one in some]
            ),
        )
        for text in texts:
            text.computed += len(text.new)
        return list(torch.split(logits, [len(some) for some in wanted]))
