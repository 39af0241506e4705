"""Models on sets, and versions of them: by the command line, on the bundled model."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from kvrt_cli.main import cli

import kvrt
from kvrt.data.intervals import bootstrap, wilson
from kvrt.data.judge import Pair, Verdict, judged, winner_of
from kvrt.data.likelihood import Likely, likelihoods
from kvrt.data.rows import Said
from kvrt.data.sketch import ERROR, Sketch
from kvrt.data.writing import Part
from kvrt.errors import RequestError
from tests.model.checkpoints import make_model, save_model, save_tokenizer

from .sets import conversation, read, written

CODE = [
    ("def read_lines(path):\n", "    with open(path) as file:\n        return file.readlines()\n"),
    ("class Error(Exception):\n", "    pass\n"),
    ("import os\n", "import sys\nimport time\n"),
    ("def __init__(self, name):\n", "        self.name = name\n"),
]
CPU = ("--backend", "cpu", "-q")


@pytest.fixture(scope="module")
def tiny() -> Iterator[kvrt.Runtime]:
    with kvrt.Runtime("tiny", backend="cpu") as runtime:
        yield runtime


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def call(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["data", *args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("models") / "noise"
    save_model(make_model("llama-2"), folder)
    save_tokenizer(folder)
    return folder


def test_a_set_is_cleaned_scored_filtered_and_kept_with_where_it_comes_from(
    data: Callable[..., Result],
) -> None:
    said = "The sky is blue since light of short waves is scattered more than that of long ones"
    lines: list[Any] = [conversation("Why?", text) for text in (said, said, f"{said}!")]
    lines += [
        conversation("Was?", "Das Licht der kurzen Wellen wird am meisten gestreut"),
        conversation("Again", "and again and again and again and again and again"),
        "nonsense",
    ]
    written(Path("raw.jsonl"), lines)
    assert "line 6" in data("dedupe", "raw.jsonl", "-o", "a.jsonl", code=2).output
    assert not Path("a.jsonl").exists(), "nothing is there that is not whole"
    found = json.loads(
        data("dedupe", "raw.jsonl", "-o", "a.jsonl", "--near", "0.8", "--rejected", "bad.jsonl",
             "--duplicates", "gone.jsonl", "--json").stdout
    )  # fmt: skip
    assert (found["rows"], found["kept"], found["same"], found["near"]) == (5, 3, 1, 1)
    assert Path("bad.jsonl").read_text() == "nonsense\n"
    assert [(each["line"], each["of"], each["why"]) for each in read(Path("gone.jsonl"))] == [
        (2, 1, "same"), (3, 1, "near"),
    ]  # fmt: skip
    data("score", "a.jsonl", "-o", "b.jsonl", "--language")
    scored = [row["scores"] for row in read(Path("b.jsonl"))]
    assert [each["language"] for each in scored] == ["en", "de", "en"]
    assert scored[0]["repetition"] == 0
    assert scored[2]["repetition"] > 0.5
    assert scored[0]["answer_chars"] == len(said)
    where = 'language == "en" and repetition < 0.3'
    data("filter", "b.jsonl", "-o", "c.jsonl", "--where", where)
    assert read(Path("c.jsonl")) == read(Path("b.jsonl"))[:1]
    told = data("filter", "a.jsonl", "-o", "d.jsonl", "--where", where, code=2)
    assert "kvrt data score" in told.output
    told = data("filter", "b.jsonl", "-o", "d.jsonl", "--where", "chars > ", code=2)
    assert "character 9" in told.output
    for name in ("a", "b", "c", "c"):
        data("version", "add", f"{name}.jsonl", "-m", f"it is {name}")
    listed = [json.loads(line) for line in data("version", "list", "--json").stdout.splitlines()]
    assert [(each["number"], each["parents"]) for each in listed] == [(1, []), (2, [1]), (3, [2])]
    assert listed[1]["made"]["command"] == "score"
    assert listed[2]["made"]["options"] == {"where": where}
    shown = json.loads(data("version", "show", "3", "--json", "-o", "again.jsonl").stdout)
    assert shown["lineage"] == [3, 2, 1]
    assert Path("again.jsonl").read_bytes() == Path("c.jsonl").read_bytes()
    assert {**shown["stats"], "bad": 0} == json.loads(data("stats", "c.jsonl", "--json").stdout)
    assert "1 kept, 2 gone, 0 new" in data("version", "diff", "2", "3").output
    kept = Path("data.store/objects", shown["sha256"][:2], f"{shown['sha256']}.jsonl")
    kept.chmod(0o644)
    kept.write_text("")
    assert "add it again" in data("version", "show", "3", code=1).output
    assert "no such version" in data("version", "show", "7", code=2).output


def test_tasks_go_out_and_come_back_as_they_were(data: Callable[..., Result]) -> None:
    path = written(Path("set.jsonl"), [conversation("a", "b"), '{"text":   "c"}'])
    data("export", "set.jsonl", "--label-studio", "tasks.json", "--config", "labels.xml")
    data("import", "--label-studio", "tasks.json", "-o", "back.jsonl")
    assert Path("back.jsonl").read_bytes() == path.read_bytes()
    assert Path("labels.xml").read_text().startswith("<View>")
    Path("tasks.json").write_text('[{"data": {}}]')
    told = data("import", "--label-studio", "tasks.json", "-o", "no.jsonl", code=2)
    assert "task 1" in told.output


def test_files_that_are_read_are_not_written_over(data: Callable[..., Result]) -> None:
    written(Path("set.jsonl"), [{"text": "a"}])
    assert "different" in data("dedupe", "set.jsonl", "-o", "set.jsonl", code=2).output
    assert "no folder" in data("dedupe", "set.jsonl", "-o", "no/such", code=2).output
    assert "cannot be read" in data("stats", "missing.jsonl", code=2).output
    assert "go together" in data("dedupe", "set.jsonl", "-o", "x", "--meaning", "1", code=2).output


def test_perplexity_is_that_of_the_answer_after_its_prompt(tiny: kvrt.Runtime) -> None:
    (prompt, answer), params = CODE[0], kvrt.SamplingParams(max_tokens=0, prompt_logprobs=0)
    found = likelihoods(tiny, [((Said("", prompt),), answer), ((), answer), ((), "")])
    tokens = [tiny.model.encode(prompt), tiny.model.encode(answer, special=False)]
    (result,) = tiny.generate([tokens[0] + tokens[1]], params)
    assert result.prompt_logprobs is not None
    own = result.prompt_logprobs[-len(tokens[1]) :]
    assert [each.token_id for each in own] == tokens[1]
    first, alone, nothing = found
    assert isinstance(first, Likely)
    assert first.logprob == pytest.approx(sum(each.logprob for each in own))
    assert first.perplexity == pytest.approx(math.exp(-first.logprob / len(tokens[1])))
    assert first.bits_per_byte == pytest.approx(-first.logprob / math.log(2) / len(answer))
    assert isinstance(alone, Likely)
    assert alone.perplexity > first.perplexity, "the prompt helps"
    assert isinstance(nothing, RequestError)


def test_scoring_goes_on_where_a_kill_has_ended_it(
    data: Callable[..., Result], tmp_path: Path
) -> None:
    lines = [{"text": f"def f{number}(self):\n    return {number}\n"} for number in range(70)]
    written(Path("set.jsonl"), [*lines, {"text": ""}])
    command = ("score", "set.jsonl", "-o", "out.jsonl", "--perplexity", "tiny", *CPU)
    data(*command)
    whole = Path("out.jsonl").read_bytes()
    scores = [row["scores"]["perplexity"] for row in read(Path("out.jsonl"))]
    assert all(1 < each < 1e4 for each in scores[:-1])
    assert scores[-1] is None
    of = {"command": "score", "set": kvrt_sha("set.jsonl"), "language": False, "perplexity": "tiny"}
    Path("out.jsonl").unlink()
    part = Part(tmp_path / "out.jsonl", of)
    part.add(whole.splitlines()[:66])
    part.close()
    with (tmp_path / "out.jsonl.part").open("ab") as file:
        file.write(whole.splitlines()[66][:20])  # cut short by the kill
    told = data(*command[:-1]).output
    assert "going on: 66 rows" in told
    assert Path("out.jsonl").read_bytes() == whole
    assert not Path("out.jsonl.part").exists()
    part = Part(tmp_path / "out.jsonl", of)
    part.close()
    refused = data("score", "set.jsonl", "-o", "out.jsonl", "--language", code=2)
    assert "other options" in refused.output


def kvrt_sha(name: str) -> str:
    from kvrt.data.reading import sha256_of

    return sha256_of(Path(name))


def test_who_has_learnt_something_finds_the_answers_likelier(
    data: Callable[..., Result], noise: Path
) -> None:
    written(Path("set.jsonl"), [*({"prompt": p, "answer": a} for p, a in CODE), {"prompt": "x"}])
    command = ("compare", "set.jsonl", "--model-a", str(noise), "--model-b", "tiny", *CPU)
    found = json.loads(data(*command, "-o", "out.jsonl", "--json").stdout)
    assert (found["rows"], found["judged"], found["b_wins"]) == (5, 4, 4)
    assert found["better"] == "b"
    assert found["win_rate"]["value"] == 0
    assert found["margin"]["high"] < 0
    assert "no answer" in found["not_judged"]["first_reason"]
    verdicts = read(Path("out.jsonl"))
    assert [(each["line"], each["winner"]) for each in verdicts] == [
        (1, "b"), (2, "b"), (3, "b"), (4, "b"), (5, None),
    ]  # fmt: skip
    again = data(*command, "-o", "out.jsonl").output
    assert "tiny is better" in again
    assert "another comparison" in data(*command, "-o", "out.jsonl", "--limit", "2", code=2).output


def test_a_judge_is_asked_in_both_orders_and_a_kill_loses_nothing(
    data: Callable[..., Result], noise: Path
) -> None:
    written(Path("set.jsonl"), ({"prompt": p} for p, _ in CODE))
    command = ["compare", "set.jsonl", "--model-a", "tiny", "--model-b", str(noise), *CPU,
               "--judge", "tiny", "-n", "8", "-o", "out.jsonl"]  # fmt: skip
    files = ("--pairs", "pairs.json", "--config", "labels.xml")
    found = json.loads(data(*command, *files, "--json").stdout)
    assert found["judged"] == 4
    assert found["a_wins"] + found["b_wins"] + found["ties"] == 4
    place = found["position"]
    assert place["asked"] == 4
    assert place["first_always"] + place["second_always"] == found["ties"]
    pairs = json.loads(Path("pairs.json").read_text())
    with kvrt.Runtime("tiny", backend="cpu") as runtime:
        params = kvrt.SamplingParams(max_tokens=8, seed=0)
        said = [each.text for each in runtime.generate([p for p, _ in CODE], params)]
    assert [pair["data"]["answer_a"] for pair in pairs] == said
    assert "<Pairwise" in Path("labels.xml").read_text()
    assert "--pairs" in data(*command, "--config", "labels.xml", code=2).output
    verdicts = Path("out.jsonl").read_bytes()
    state = Path("out.jsonl.state")
    for name in ("b", "verdicts"):  # as a kill would have left it, two rows of b kept
        (state / f"{name}.jsonl").rename(f"{name}.jsonl")
    kept = Path("b.jsonl").read_bytes().splitlines()[:2]
    part = Part((state / "b.jsonl").absolute(), json.loads((state / "contest.json").read_text()))
    part.add(kept)
    part.close()
    Path("out.jsonl").unlink()
    data(*command)
    assert Path("out.jsonl").read_bytes() == verdicts
    assert (state / "b.jsonl").read_bytes() == Path("b.jsonl").read_bytes()


def test_a_judge_says_the_same_of_answers_that_change_places(tiny: kvrt.Runtime) -> None:
    pairs = [Pair("Say.", "yes " * n, "no") for n in (1, 3)] + [Pair("Say.", "no", "no")]
    there = judged(tiny, pairs)
    back = judged(tiny, [Pair(each.prompt, each.b, each.a) for each in pairs])
    other = {"a": "b", "b": "a", "tie": "tie", None: None}
    for one, two in zip(there, back, strict=True):
        assert other[one.winner] == two.winner
        assert one.value == pytest.approx(-two.value, abs=1e-9)
        if one.first is not None and two.second is not None:
            assert one.first == pytest.approx(1 - two.second)
    assert there[2] == Verdict("tie"), "the same answer is no question"
    (long,) = judged(tiny, [Pair("Say.", "yes " * 10_000, "no")])
    assert long.winner is None
    assert "the judge could not be asked" in long.why


def test_who_wins_in_one_place_alone_has_not_won() -> None:
    found = [winner_of(first, second) for first, second in
             ((0.9, 0.6), (0.9, 0.1), (0.1, 0.9), (0.2, 0.4), (0.5, 0.9))]  # fmt: skip
    assert found == ["a", "tie", "tie", "b", "tie"]


@given(st.integers(0, 200), st.integers(0, 200))
def test_intervals_hold_what_they_are_of(wins: int, losses: int) -> None:
    found = wilson(wins, wins + losses)
    if found is None:
        assert wins + losses == 0
        return
    assert 0 <= found.low <= found.value <= found.high <= 1
    if wins + losses > 1:
        more = wilson(wins * 4, (wins + losses) * 4)
        assert more is not None
        assert more.high - more.low < found.high - found.low


def test_intervals_are_those_of_the_textbook() -> None:
    found = wilson(7, 10)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.3968, 0.8922)
    mean = bootstrap([0.0, 1.0] * 200)
    assert mean is not None
    assert mean.low == pytest.approx(0.451, abs=0.01)
    assert mean.high == pytest.approx(0.549, abs=0.01)
    assert bootstrap([]) is None


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from([0.0, 0.5, 0.95, 1.0])
)
def test_quantiles_are_right_to_one_in_a_hundred(values: list[float], part: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    true = sorted(values)[math.floor(part * (len(values) - 1))]
    assert sketch.quantile(part) == pytest.approx(true, rel=ERROR * 1.01, abs=1e-8)
    assert sketch.as_json()["count"] == len(values)


@pytest.mark.extra
def test_ctrl_c_keeps_what_has_come(tmp_path: Path) -> None:
    lines = [{"text": f"def f{number}(self):\n" * 30} for number in range(3000)]
    written(tmp_path / "set.jsonl", lines)
    command = [sys.executable, "-m", "kvrt_cli", "data", "score", "set.jsonl", "-o", "out.jsonl",
               "--perplexity", "tiny", "--backend", "cpu"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    part = tmp_path / "out.jsonl.part"
    while not part.exists() or part.stat().st_size == 0:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not (tmp_path / "out.jsonl").exists()
    assert len(read(part)) >= 64


@pytest.mark.extra
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    peaks = []
    for rows in (10_000, 60_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                words = " ".join(f"w{(number * 7919 + k * k * 31) % 99991}" for k in range(40))
                file.write(json.dumps({"prompt": f"{number}", "answer": words}) + "\n")
        source = (
            "import resource, sys\nfrom kvrt_cli.main import cli\n"
            "try: cli.main(sys.argv[1:])\n"
            "except SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", source, "data", "dedupe", str(path), "-o",
                   str(tmp_path / "out.jsonl"), "--near", "0.8", "-q"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    # SQLite's cache of 64 MiB may still fill; nothing else may grow.
    assert peaks[1] - peaks[0] < 80 << 10, peaks
