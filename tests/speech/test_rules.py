"""Which token may come next, and where windows are cut, as transformers has it."""

import random

import pytest
import torch
from transformers import GenerationConfig, SuppressTokensAtBeginLogitsProcessor
from transformers.generation.logits_process import (
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from kvrt.model.speech.control import Control
from kvrt.speech.choosing import Chooser
from kvrt.speech.windows import cut

TEXT, EOS, NO_TIMES, TIMES = 10, 10, 14, 20
FIRST = NO_TIMES + 1
VOCAB = FIRST + TIMES
CONTROL = Control(
    start=11,
    eos=EOS,
    no_times=NO_TIMES,
    previous=None,
    languages={},
    tasks={},
    never=(2, 5),
    never_first=(3, EOS),
    latest=6,
    times=TIMES,
)


def reference(logits: torch.Tensor, written: list[int], *, times: bool) -> int:
    said = GenerationConfig(no_timestamps_token_id=NO_TIMES, eos_token_id=EOS)
    said.max_initial_timestamp_index = CONTROL.latest
    processors = [
        SuppressTokensAtBeginLogitsProcessor([*CONTROL.never_first], begin_index=1),
        SuppressTokensLogitsProcessor([*CONTROL.never]),
    ]
    if times:
        processors.append(WhisperTimeStampLogitsProcessor(said, begin_index=1))
    ids, scores = torch.tensor([[CONTROL.start, *written]]), logits[None]
    for processor in processors:
        scores = processor(ids, scores)
    return int(scores[0].argmax())


@pytest.mark.parametrize("times", [True, False])
def test_the_next_token_is_the_one_that_transformers_chooses(times: bool) -> None:
    torch.manual_seed(0)
    chooser = Chooser(CONTROL, VOCAB)
    lengths = set[int]()
    for _ in range(150):
        written: list[int] = []
        while len(written) < 25:
            logits = torch.randn(VOCAB) * 2
            logits[EOS] += 1
            token = chooser.choose(logits, written, times=times).token
            assert token == reference(logits, written, times=times)
            if token == EOS:
                break
            written.append(token)
        lengths.add(len(written))
    assert len(lengths) > 8


def test_windows_are_cut_as_transformers_cuts_them() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        kinds = [draw.random() < 0.4 for _ in range(draw.randrange(1, 12))]
        time, tokens = 0, []
        for is_time in kinds:
            time = min(TIMES - 1, time + draw.randrange(3))
            tokens.append(FIRST + time if is_time else draw.randrange(TEXT))
        if tokens[0] < FIRST and any(kinds):
            tokens.insert(0, FIRST)  # a time comes first, where there are any
        frames = draw.randrange(1, 2 * TIMES)
        parts, after = cut(tokens, FIRST, frames)
        want, offset = WhisperGenerationMixin._retrieve_segment(
            seek_sequence=torch.tensor(tokens),
            seek_outputs=[None],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=FIRST,
            seek_num_frames=torch.tensor([frames]),
            time_precision=1.0,
            time_precision_features=0.5,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 1),
        )
        assert [part.tokens for part in parts] == [own["tokens"].tolist() for own in want]
        assert [(part.start, part.end) for part in parts] == [
            (float(own["start"]), float(own["end"])) for own in want
        ]
        assert [tokens[part.first :][: len(part.tokens)] for part in parts] == [
            part.tokens for part in parts
        ]
        assert after == (int(offset) or frames)  # it never stays where it is
