"""What no command takes: each is refused for its own reason, before anything is loaded or made."""

import json
from pathlib import Path

import pytest

from .conftest import Kvrt

FILES = {
    "rows.jsonl": '{"prompt": "a", "response": "b"}\n',
    "empty.txt": "",
    "no-list.json": "{}",
    "no.yaml": "a: b\x00",
    "short.key": "YWJj",
    "keys": "",
    "bench.json": json.dumps({"format": "kvrt bench", "version": 1}),
    "prompts.jsonl": '{"prompt": "a"}\n{"prompt": 5}\n',
    "usage.db": "",
}
LLAMA = ("llama-server", "-m", "x.gguf")
REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("batch", "run", "-i", "rows.jsonl", "-o", "rows.jsonl"), "are three different files"),
    (("batch", "run", "-i", "rows.jsonl", "-o", "a", "--errors", "a"), "three different files"),
    (("batch", "run", "-i", "rows.jsonl", "-o", "no/where"), "no is no folder"),
    (("batch", "run", "-i", "nothing", "-o", "a"), "/nothing: No such file"),
    (("batch", "letters", "nowhere"), "nowhere"),
    (("bench", "gate", "bench.json", "--slo", "errors=1"), "bench.json is no result that is known"),
    (("bench", "serve", "--url", "http://x", "--field", "temperature"), "NAME=VALUE, as in temp"),
    (("bench", "serve", "--url", "http://x", "--field", "=1"), "NAME=VALUE, as in temperature=0"),
    (("bench", "serve", "--url", "http://x", "--key-file", "empty.txt"), "holds no key, which is"),
    (("bench", "serve", "--url", "http://x", "--key-file", "nothing"), "holds no key, which is"),
    (("data", "dedupe", "rows.jsonl", "-o", "out", "--meaning", "0.9"), "and --embed-model go tog"),
    (("data", "dedupe", "rows.jsonl", "-o", "out", "--embed-model", "x"), "--meaning and --embed"),
    (("data", "dedupe", "rows.jsonl", "-o", "rows.jsonl"), "are different ones"),
    (("data", "dedupe", "rows.jsonl", "-o", "no/out"), "no is no folder"),
    (("data", "dedupe", "rows.jsonl", "-o", "out", "--rejected", "folder"), "is a directory"),
    (("data", "compare", "rows.jsonl", "--model-a", "a", "--model-b", "b", "-o", "out", "--pairs",
      "p"), "--pairs are answers, which models give with --judge alone"),
    (("data", "import", "--label-studio", "nothing", "-o", "out"), "nothing: No such file"),
    (("data", "import", "--label-studio", "no-list.json", "-o", "out"), "no list"),
    (("data", "filter", "rows.jsonl", "-o", "out", "--where", "1 +"), "--where, character"),
    (("llama-server",), "which model? -m FILE, or -hf OWNER/NAME:QUANT"),
    ((*LLAMA, "--lora-scaled", "a"), "--lora-scaled is PATH:SCALE"),
    ((*LLAMA, "--lora-scaled", "a:b"), "--lora-scaled is PATH:SCALE"),
    ((*LLAMA, "--lora", "a,a"), "--lora names a file twice"),
    ((*LLAMA, "-ctk", "f32", "-ctv", "q8_0"), "both are of one type here"),
    ((*LLAMA, "-ctk", "q5_0"), "--cache-type-k q5_0 is not offered"),
    ((*LLAMA, "--spec-type", "magic"), "--spec-type: there is "),
    (("run", "tiny", "a", "--template-var", "x"), "NAME=VALUE, as in enable_thinking=false"),
    (("run", "tiny", "a", "--template-var", "2x=1"), "NAME=VALUE, as in enable_thinking=false"),
    (("run", "tiny", "a", "--logit-bias", "42"), "ID=X, as in 42=-100"),
    (("run", "tiny", "a", "--logit-bias", "42=much"), "ID=X, as in 42=-100"),
    (("run", "tiny", "a", "--prompts", "prompts.jsonl"), "either a PROMPT or --prompts, not both"),
    (("run", "tiny", "--prompts", "folder"), "--prompts: folder: Is a directory"),
    (("run", "tiny", "a", "--guarantee", "1GiB"), "--guarantee is about a share: add --share NAME"),
    (("run", "tiny", "a", "--share-priority", "2"), "--share-priority is about a share: add"),
    (("run", "tiny", "a", "--share", "x", "--lend"), "about what is guaranteed: add --guarantee"),
    (("run", "tiny", "a", "--node-rank", "1"), "--node-rank needs --master, the first machine's"),
    (("run", "tiny", "a", "--profile", "no.yaml"), "no.yaml is not YAML: "),
    (("profile-config", "new", "laptop", "-o", "keys"), "keys is there already"),
    (("profile-config", "new", "laptop", "-o", "no/where"), "--output: no/where: No such file"),
    (("serve", "tiny", "--new-key", "me"), "--new-key needs --keys FILE, where the key is to be"),
    (("serve", "tiny", "--workspace", "we"), "--workspace is of --new-key; lines of --keys have"),
    (("serve", "a=tiny", "--devices", "cpu:0", "--backend", "cpu"), "--backend and --device name"),
    (("serve", "a=tiny", "b=tiny", "--share", "x"), "--share is for one model: serve that alone"),
    (("serve", "a=tiny", "b=tiny", "--cache-dir", "x"), "--cache-dir is for one model"),
    (("serve", "a=tiny", "b=tiny", "--batches", "x"), "--batches is for one model"),
    (("store",), "give either --memory SIZE, or --dir DIR and --size SIZE"),
    (("store", "--memory", "1MiB", "--dir", "x", "--size", "1MiB"), "give either --memory SIZE"),
    (("store", "--dir", "x"), "--dir and --size go together"),
    (("store", "--memory", "1MiB", "--size", "1MiB"), "--dir and --size go together"),
    (("store", "--memory", "1MiB", "--key", "short.key"), "holds no key: it must have from"),
    (("route", "http://a:1,b,c,d"), "is not URL, URL,EVENTS or URL,EVENTS,REPLAY"),
    (("tune", "tiny", "--knobs", "speculate"), "nothing to search: speculate needs PROMPTS, and"),
    (("tune", "tiny", "prompts.jsonl"), "PROMPTS, line 2: "),
    (("tune", "tiny", "empty.txt"), "PROMPTS: the file is empty"),
    (("usage", "usage.db", "--json", "--csv"), "--json and --csv are two things"),
    (("usage", "usage.db", "--requests"), "--requests is for --json or --csv"),
    (("usage", "usage.db", "--since", "soon"), "no day such as 2026-11-27"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "why"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_what_no_command_takes_is_refused_for_its_reason(
    kvrt: Kvrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name, text in FILES.items():
        Path(name).write_text(text)
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    result = kvrt(*args)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stderr.startswith("error: ")
    assert why in " ".join(result.stderr.replace("\n  fix: ", ": ").split())
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
