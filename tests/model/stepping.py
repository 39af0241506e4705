"""A decoder driven by hand: sequences on KV pages, advanced a few tokens at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvrt.model.decoder.seen import Seen
from kvrt.model.layouts import layouts_of
from kvrt.model.loader import Model
from kvrt.spi import Device, KVFormat, StateLayout
from kvrt.testing.paged import PagedKV

PAGE_SIZE = 16


@dataclass
class Text:
    """A sequence: its tokens, how many of them have keys and values, and in which pages of each
    group of layers."""

    tokens: list[int]
    pages: list[list[int]]
    done: int = 0
    logits: list[Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.done


class Stepper:
    """Sequences of one model on one device; every page is NaN until it is written."""

    def __init__(self, model: Model, places: Sequence[PagedKV], longest: int) -> None:
        self.model = model
        self.places = places
        self._longest = longest

    def add(self, tokens: Sequence[int]) -> Text:
        return Text(list(tokens), [place.take(self._longest) for place in self.places])

    def step(
        self,
        rows: Sequence[tuple[Text, int]],
        adapters: Sequence[int] | None = None,
        seen: Sequence[Seen] = (),
    ) -> None:
        """Run the next `count` tokens of each text; their logits are appended to it.

        Args:
            adapters: the number of each text's; None: they have none.
            seen: what stands in place of tokens.
        """
        batches = [
            (place.states if isinstance(place.layout, StateLayout) else place.batch)(
                [text.pages[group] for text, _ in rows],
                [text.done + count for text, count in rows],
                [count for _, count in rows],
            )
            for group, place in enumerate(self.places)
        ]
        tokens = [t for text, count in rows for t in text.tokens[text.done : text.done + count]]
        every = torch.arange(len(tokens))
        logits = self.model.decoder.forward(torch.tensor(tokens), batches, every, adapters, seen)
        for (text, count), part in zip(
            rows, logits.cpu().split([count for _, count in rows]), strict=True
        ):
            text.logits.extend(part)
            text.done += count

    def greedy(self, texts: Sequence[Text], new: int, budget: int) -> None:
        """Continue each text by `new` tokens, all together, at most `budget` tokens a step.

        A text joins when the budget first has room for it, so that steps mix prefill and decoding.
        """
        end = {id(text): len(text.tokens) + new for text in texts}
        while pending := [t for t in texts if len(t.tokens) < end[id(t)]]:
            rows, room = [], budget
            for text in sorted(pending, key=lambda text: text.left > 1):
                count = min(text.left, room)
                if count:
                    rows.append((text, count))
                    room -= count
            self.step(rows)
            for text, _ in rows:
                if text.left == 0:
                    text.tokens.append(int(text.logits[-1].argmax()))


@contextmanager
def stepping(
    model: Model, device: Device, *, texts: int, longest: int, kv: KVFormat = "float32"
) -> Iterator[Stepper]:
    """A stepper with room for that many texts of that many tokens."""
    with ExitStack() as stack:
        places = [
            stack.enter_context(PagedKV(device, layout, texts * -(-longest // PAGE_SIZE)))
            for layout in layouts_of(model.spec, PAGE_SIZE, kv, model.decoder.dtype)
        ]
        yield Stepper(model, places, longest)
