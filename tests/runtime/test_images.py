"""Prompts with images: the same answers as transformers', however they are computed; pages that are
found again for the same images and never for others; bad images fail alone."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from kvrt import Chat, Illustrated, RequestError, Runtime, SamplingParams
from kvrt.engine.events import Event, StepDone
from tests.model.checkpoints import make_model, save_model
from tests.model.sights import (
    BEGIN,
    END,
    IMAGE,
    TOKENS,
    encoded,
    logits_of,
    make_sight,
    picture,
    save_sight,
    tokens_with,
)

NEW = 12
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0.0)
PAGE = 4
COUNTS = [(5, 20), (0, 1), (3, 0, 7), (30, 9), (2, 2)]
"""Of prompts, the tokens before images and behind the last; none behind the last is not asked."""


class Case:
    def __init__(self, folder: Path) -> None:
        self.reference: PreTrainedModel = make_sight()
        self.folder = save_sight(self.reference, folder)
        self.prompts = [
            Illustrated(tokens_with(*counts), [picture(10 * n + m) for m in range(len(counts) - 1)])
            for n, counts in enumerate(COUNTS)
        ]
        self.said = [self._says([*prompt.prompt], [*prompt.images]) for prompt in self.prompts]

    def _says(self, tokens: list[int], images: list[Any]) -> tuple[int, ...]:
        said = list(tokens)
        for _ in range(NEW):
            said.append(int(logits_of(self.reference, said, images)[-1].argmax()))
        return tuple(said[len(tokens) :])

    def opened(self, **options: Any) -> Runtime:
        fixed = {"memory_limit": "256MiB", "page_size": PAGE, "debug": True, "threads": 1}
        return Runtime(self.folder, backend="cpu", **{**fixed, **options})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("sight"))


@pytest.fixture(scope="module")
def runtime(case: Case) -> Iterator[Runtime]:
    with case.opened() as runtime:
        yield runtime


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 19, "max_running": 4},  # a step has room for an image and no more
        {"max_batch_tokens": 23, "max_running": 3, "speculate": "ngram", "prefix_cache": False},
        {"page_size": 16, "offload": "host:8MiB", "kv_cache_dtype": "float32"},
    ],
)
def test_answers_are_those_of_transformers_alone_and_together(
    case: Case, options: dict[str, Any]
) -> None:
    with case.opened(**options) as runtime:
        together = runtime.generate(case.prompts, GREEDY)
        again = runtime.generate(case.prompts, GREEDY)
        alone = [runtime.generate(prompt, GREEDY)[0] for prompt in case.prompts]
    for results in (together, again, alone):
        assert [result.token_ids for result in results] == case.said


def test_requests_that_lost_their_pages_see_their_images_again(case: Case) -> None:
    longer = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0)
    with case.opened(prefix_cache=False) as runtime:
        calm = [result.token_ids for result in runtime.generate(case.prompts, longer)]
        streams = [runtime.stream(prompt, longer) for prompt in case.prompts]
        for stream in streams:
            next(iter(stream))
        runtime.sleep(1)
        runtime.wake()
        results = [stream.result for stream in streams]
    assert [result.token_ids for result in results] == calm
    assert any(result.usage.preemptions for result in results)


def test_drafts_of_a_model_and_completions_side_by_side_change_nothing(case: Case) -> None:
    several = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0.7, seed=3, n=3)
    beams = SamplingParams(max_tokens=NEW, ignore_eos=True, beam_width=2)
    with case.opened() as runtime:
        apart = [runtime.generate(prompt, several)[0] for prompt in case.prompts]
        wide = [runtime.generate(prompt, beams)[0] for prompt in case.prompts]
    with case.opened(draft_model=case.folder, max_batch_tokens=40, max_running=16) as runtime:
        drafted = runtime.generate(case.prompts, GREEDY)
        together = runtime.generate(case.prompts, several)
        found = runtime.generate(case.prompts, beams)
    assert [result.token_ids for result in drafted] == case.said
    for one, other in zip([*apart, *wide], [*together, *found], strict=True):
        assert [c.token_ids for c in one.completions] == [c.token_ids for c in other.completions]


def test_log_probabilities_of_a_prompt_know_its_images(case: Case, runtime: Runtime) -> None:
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    prompt = case.prompts[0]
    found = runtime.generate(prompt, asked)[0].prompt_logprobs
    assert found is not None
    tokens = [*prompt.prompt]
    logits = logits_of(case.reference, tokens, [*prompt.images]).log_softmax(-1)
    wanted = [logits[at - 1, token].item() for at, token in enumerate(tokens) if at]
    assert [each.logprob for each in found[-len(wanted) :]] == pytest.approx(wanted, abs=1e-3)


def refusal(runtime: Runtime, prompt: Any) -> RequestError:
    """Why a prompt is not answered."""
    error = runtime.generate([prompt], GREEDY)[0].error
    assert isinstance(error, RequestError)
    return error


# --- pages -----------------------------------------------------------------------------------


def of_page(tokens: int) -> int:
    return tokens // PAGE * PAGE


@pytest.mark.parametrize("before", range(PAGE))
def test_pages_are_found_for_the_same_image_and_none_of_it_for_another(
    case: Case, before: int
) -> None:
    tokens = tokens_with(before, 9)
    same = Illustrated(tokens, [picture(1)])
    other = Illustrated(tokens, [picture(2)])
    with case.opened() as runtime:
        fresh = runtime.generate(same, GREEDY)[0]
        found = runtime.generate(same, GREEDY)[0]
        as_file = runtime.generate(Illustrated(tokens, [encoded(picture(1))]), GREEDY)[0]
        another = runtime.generate(other, GREEDY)[0]
    with case.opened() as runtime:
        alone = runtime.generate(other, GREEDY)[0]
    assert fresh.usage.cached_tokens == 0
    assert found.usage.cached_tokens == as_file.usage.cached_tokens == of_page(len(tokens) - 1)
    assert found.token_ids == as_file.token_ids == fresh.token_ids
    assert another.usage.cached_tokens == of_page(tokens.index(IMAGE))
    assert another.token_ids == alone.token_ids


def test_pages_of_a_prompt_that_is_scored_are_found_for_its_image_alone(case: Case) -> None:
    tokens = tokens_with(3, 9)
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
    with case.opened() as runtime:
        runtime.generate(Illustrated(tokens, [picture(1)]), scored)
        other, same = (
            runtime.generate(Illustrated(tokens, [picture(n)]), GREEDY)[0].usage.cached_tokens
            for n in (2, 1)
        )
    assert same == of_page(len(tokens) - 1)
    assert other == of_page(tokens.index(IMAGE))


def test_names_that_do_not_know_images_would_be_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kvrt.kv.tiers.names", "kvrt.kv.index.reuse"):
        monkeypatch.setattr(f"{module}.mark_of", lambda media, start, stop: b"")
    with pytest.raises(AssertionError):
        test_pages_are_found_for_the_same_image_and_none_of_it_for_another(case, 1)
    with pytest.raises(AssertionError):
        test_pages_of_a_prompt_that_is_scored_are_found_for_its_image_alone(case)


def test_a_prompt_begins_with_cached_pages_at_every_border_within_an_image(case: Case) -> None:
    tokens = tokens_with(3, 9)
    first, last = tokens.index(IMAGE), len(tokens) - 9
    prompt = Illustrated(tokens, [picture(1)])
    wanted = None
    for border in range(of_page(first), of_page(last) + 1, PAGE):
        with case.opened() as runtime:
            runtime.generate(prompt, GREEDY)
            names = runtime._worker.engine.memory.reuse
            assert names is not None
            doomed = [entry for entry in names.index if entry.depth * PAGE >= border]
            runtime._worker.call(
                lambda runtime=runtime, doomed=doomed: runtime._worker.engine.memory.forget(
                    runtime._worker.engine.memory.reuse.index.pages_of(doomed)
                )
            )
            result = runtime.generate(prompt, GREEDY)[0]
        assert result.usage.cached_tokens == border
        wanted = wanted or result.token_ids
        assert result.token_ids == wanted


def test_pins_and_snapshots_know_images(case: Case, tmp_path: Path) -> None:
    tokens = tokens_with(3, 9)
    one, other = (Illustrated(tokens, [picture(n)]) for n in (1, 2))
    with case.opened() as runtime:
        runtime.generate(one, GREEDY)
        whole = of_page(len(tokens))
        assert runtime.pin(one) == whole
        assert runtime.pin(other) == of_page(tokens.index(IMAGE))
        assert runtime.save_cache(tmp_path, one) == 2 * (whole // PAGE), "of two groups of layers"
        assert runtime.unpin(one) + runtime.unpin(other)
    with case.opened() as runtime:
        runtime.load_cache(tmp_path)
        assert runtime.generate(one, GREEDY)[0].usage.cached_tokens == of_page(len(tokens) - 1)


# --- steps -----------------------------------------------------------------------------------


def test_no_step_ends_within_an_image(case: Case) -> None:
    counts: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            counts.append(event.tokens)

    tokens = tokens_with(7, 30)
    with case.opened(max_batch_tokens=18, max_running=2, prefix_cache=False) as runtime:
        runtime.add_observer(note)
        result = runtime.generate(Illustrated(tokens, [picture(0)]), GREEDY)[0]
    ends = [*itertools.accumulate(counts)]
    start = tokens.index(IMAGE)
    assert result.finish_reason == "length"
    assert start in ends, "it stops in front of an image that it has no room for"
    assert not {*range(start + 1, start + TOKENS)}.intersection(ends)


def test_images_that_are_cut_would_be_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvrt.kv.seq.uncut", lambda media, start, count: count)
    with pytest.raises(AssertionError):
        test_no_step_ends_within_an_image(case)


def test_an_image_that_no_step_has_room_for_is_refused(case: Case) -> None:
    with case.opened(max_batch_tokens=17, max_running=3) as runtime:
        error = refusal(runtime, case.prompts[0])
    assert re.search("an image is 16 tokens.* leaves 15", str(error))
    assert "raise max_batch_tokens to 18" in error.fix


# --- prompts ---------------------------------------------------------------------------------


def test_messages_and_texts_have_the_tokens_that_a_template_and_marks_say(
    runtime: Runtime, tmp_path: Path
) -> None:
    image = picture(5)
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(image, "JPEG"))
    part = {"type": "image", "image": path}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    encode = runtime.model.encode
    sight = [*encode("\n\n", special=False), BEGIN, *[IMAGE] * TOKENS, END]
    sight += encode("\n\n", special=False)
    wanted = [1, *encode("user:", special=False), *sight]
    wanted += encode("what?\nmodel:", special=False)
    for prompt in (messages, Chat(messages)):
        assert [*runtime.generate([prompt], GREEDY)[0].prompt_token_ids] == wanted
    for text, before in (("is it?", ""), ("say<start_of_image>is it?", "say")):
        asked = runtime.generate(Illustrated(text, [path.read_bytes()]), GREEDY)[0]
        parts = [*encode(before, special=False), *sight, *encode("is it?", special=False)]
        assert [*asked.prompt_token_ids] == parts


def bomb() -> bytes:
    """A file of a few kilobytes that is an image of 100 million pixels."""
    return encoded(Image.new("1", (10_000, 10_000)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "is none of PNG, JPEG"),
        (b"text", "is none of PNG, JPEG"),
        (encoded(picture())[:-40], "cannot be decoded"),
        (encoded(picture())[:20], "is none of|cannot be decoded"),
        (encoded(picture(), "TIFF"), "is none of PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(21 << 20), "has more than 20,971,520 bytes"),
        (bomb(), "has 10000 x 10000 pixels; at most|cannot be decoded"),
        (Path("no-such-file.png"), "cannot be read: No such file"),
        (Path("with\0null"), "cannot be read: is no path"),
        ("/etc/hostname", "is a str"),
        (7, "is a int"),
    ],
)
def test_an_image_that_cannot_be_read_fails_its_request_alone(
    case: Case, runtime: Runtime, image: object, said: str
) -> None:
    bad = Illustrated(case.prompts[0].prompt, [image])  # type: ignore[list-item]
    error = refusal(runtime, bad)
    assert re.search(f"image 0 ({said})", str(error)), error
    assert error.param == "images"
    results = runtime.generate([bad, case.prompts[0]], GREEDY)
    assert isinstance(results[0].error, RequestError)
    assert results[1].token_ids == case.said[0]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Illustrated("x<start_of_image>", [picture(), picture()]), "2 images, and its text has 1"),
        (Illustrated("x<image_soft_token>", [picture()]), "17 tokens that stand for images"),
        (Illustrated(tokens_with(3, 3)[:-8], [picture()]), "12 tokens that stand for images"),
        (Illustrated([5, 6], [picture()]), "0 tokens that stand for images"),
        (Illustrated("x", [picture()] * 9), "has 9 images; at most 8 are taken"),
        (Illustrated("x", []), "a list of at least one"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has an image without one"),
        ([{"role": "user", "content": [{"type": "image", "image": "/etc/hostname"}]}], "is a str"),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": encoded(picture())},
                        {"type": "text", "text": "<start_of_image>"},
                    ],
                }
            ],
            "1 image, and its text has 2 marks",
        ),
    ],
)
def test_images_that_do_not_fit_their_prompt_are_refused(
    runtime: Runtime, prompt: Any, said: str
) -> None:
    assert said in str(refusal(runtime, prompt))


def test_a_model_without_a_tower_refuses_images_by_name(case: Case, tmp_path: Path) -> None:
    save_model(make_model("gemma-3"), tmp_path / "blind")
    with Runtime(tmp_path / "blind", backend="cpu", memory_limit="64MiB") as runtime:
        said = str(refusal(runtime, case.prompts[0]))
    assert "blind has no vision tower that kvrt knows" in said
    with case.opened(max_images=0) as runtime:
        said = str(refusal(runtime, case.prompts[0]))
        assert runtime.generate([[5, 6, 7]], GREEDY)[0].token_ids
    assert "without its vision tower: max_images is 0" in said


def test_files_that_turn_pictures_around_are_turned(runtime: Runtime) -> None:
    image = picture(7, (20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    vision = runtime.model.vision
    assert not isinstance(vision, str)
    turned, plain = (vision.read(one, 0) for one in (
        _with_exif(image, exif), Image.open(_file(image)).rotate(-90, expand=True)
    ))  # fmt: skip
    assert torch.equal(turned.pixels, plain.pixels)


def _file(image: Image.Image) -> Any:
    import io

    return io.BytesIO(encoded(image))


def _with_exif(image: Image.Image, exif: Image.Exif) -> bytes:
    file = _file(image)
    image.save(file, "PNG", exif=exif)
    return bytes(file.getvalue())
