"""What somebody asks is in nothing that `kvrt` prints but the answer, whatever goes wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from .conftest import DUMMY, Kvrt, make_model

CANARY = "xyzzy the canary sings"
WORD = "xyzzy"
LONG = f"{CANARY} " * 100
LATIN = f"{CANARY}\udce9"
"""An argument that is not UTF-8, as Python has it."""

SMALL = (*DUMMY, "-n", "2", "--max-model-len", "128")
NESTED = "[" * 400 + f'"{CANARY}"' + "]" * 400

pytestmark = pytest.mark.promise("P41")


@pytest.fixture
def silent(kvrt: Kvrt) -> Kvrt:
    """`kvrt`, which must fail, and must not print the canary; it logs what is to be logged."""

    def call(*args: str, input: bytes = b"", env: object = None) -> object:
        result = kvrt(*args, input=input, env={"KVRT_LOG_LEVEL": "INFO"})
        assert result.exit_code in (1, 2, 3), (result.exit_code, result.stderr)
        assert "error: " in result.stderr
        assert WORD not in result.stderr
        assert WORD not in result.stdout
        return result

    return call  # type: ignore[return-value]


@pytest.mark.parametrize(
    "args",
    [
        [CANARY],
        [LONG],
        [f"--{CANARY}"],
        ["run", CANARY],
        ["run", LONG],
        ["run", LATIN],
        ["run", f"/{CANARY}"],
        ["run", f"{CANARY}\nand more"],
        ["run", "MODEL", f"--{CANARY}"],
        ["run", "MODEL", f"--- {CANARY}"],
        ["run", "MODEL", LATIN],
        ["run", "MODEL", LONG, *SMALL],
        ["run", "MODEL", "x", "--system", CANARY, *SMALL],
        ["run", "MODEL", "x", "--system", LATIN, *SMALL],
        ["run", "MODEL", "x", "--stop", LATIN],
        ["run", "MODEL", "x", "--stop", LONG],
        ["run", "MODEL", "x", *["--stop", CANARY] * 65],
        ["run", "MODEL", "x", "--stop", CANARY, "--beam-width", "2"],
        ["run", "MODEL", "x", "--bad-word", LATIN],
        ["run", "MODEL", "x", "--bad-word", f"{CANARY}\n" * 500, *SMALL],
        ["run", "MODEL", "x", "--template-var", CANARY],
        ["run", "MODEL", "x", "--template-var", f"v={CANARY}", *SMALL],
        ["run", "MODEL", "--prompts", CANARY],
        ["run", "MODEL", "--prompts", LONG],
        ["bench", CANARY],
        ["bench", "MODEL", CANARY],
        ["doctor", CANARY],
    ],
)
def test_no_argument_is_quoted(silent: Kvrt, plain_model: str, args: Sequence[str]) -> None:
    silent(*(plain_model if arg == "MODEL" else arg for arg in args))


@pytest.mark.parametrize("stdin", [LATIN.encode(errors="surrogateescape"), LONG.encode()])
def test_standard_input_is_not_quoted(silent: Kvrt, plain_model: str, stdin: bytes) -> None:
    silent("run", plain_model, *SMALL, input=stdin)


LINES = [
    LATIN.encode(errors="surrogateescape"),
    LONG.encode(),
    *(
        json.dumps(value).encode()
        for value in (
            {"prompt": LONG},
            {"prompt": [CANARY]},
            {"prompt": {CANARY: CANARY}},
            {"prompt": CANARY, "token_ids": [1]},
            {"messages": CANARY},
            {"messages": [CANARY]},
            {"messages": [{"role": "user", "content": CANARY}]},
            {"messages": [{CANARY: CANARY}]},
            {"messages": [{"role": CANARY, "content": {CANARY: 1}}]},
            {"token_ids": CANARY},
            {"token_ids": [CANARY]},
            {"token_ids": [1, [CANARY]]},
            {"prompt": "x", CANARY: 1},
            {"prompt": "x", WORD: 1},
            {"prompt": "x", "id": [CANARY]},
            {"prompt": "x", "stop": {CANARY: 1}},
            {"prompt": "x", "stop": [[CANARY]]},
            {"prompt": "x", "stop": [CANARY * 99]},
            {"prompt": "x", "stop": [CANARY], "beam_width": 2},
            {"prompt": "x", "max_tokens": CANARY},
            {"prompt": "x", "ignore_eos": CANARY},
            {"prompt": "x", "temperature": [CANARY]},
            {"prompt": "x", "stop_token_ids": [CANARY]},
        )
    ),
    f'{{"prompt": "{CANARY}'.encode(),
    f'{{"prompt": "x" {CANARY}}}'.encode(),
    f'{{"prompt": "x", "stop": {NESTED}}}'.encode(),
    f'{{"prompt": "\\ud800 {CANARY}"}}'.encode(),
]
FILES = [
    f'["{CANARY}", {CANARY}]'.encode(),
    f'["{CANARY}'.encode(),
    f'["{CANARY}\ud800"]'.encode("utf-16", "surrogatepass"),
    f"{CANARY}".encode("utf-16")[:-1],
    f'[["{CANARY}"]]'.encode(),
]


def test_no_line_of_a_file_is_quoted(silent: Kvrt, plain_model: str) -> None:
    result = silent("run", plain_model, *SMALL, "--prompts", "-", input=b"\n".join(LINES))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["line"] for row in rows] == list(range(1, len(LINES) + 1))
    assert all(row["error"]["message"] for row in rows)


@pytest.mark.parametrize("data", FILES)
def test_no_file_that_cannot_be_read_is_quoted(silent: Kvrt, plain_model: str, data: bytes) -> None:
    silent("run", plain_model, *SMALL, "--prompts", "-", input=data)


TEMPLATES = [
    "{{ raise_exception('no ' ~ messages[0].content) }}",
    "{{ messages[0].content + 1 }}",
    "{{ {}[messages[0].content] }}",
    "{{ messages[0].content.foo.bar }}",
    "{{ messages[0].content | tojson | int + messages[0].content }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_chat_template_says_of_a_message_is_not_quoted(
    silent: Kvrt, tmp_path: Path, template: str
) -> None:
    model = make_model(tmp_path / "model", chat=True)
    settings = json.dumps({"chat_template": template})
    (model / "tokenizer_config.json").write_text(settings)
    for args in (["--", CANARY], ["x", "--system", CANARY]):
        silent("run", str(model), *SMALL, *args)
    lines = json.dumps({"messages": [{"role": "user", "content": CANARY}]}).encode()
    silent("run", str(model), *SMALL, "--prompts", "-", input=lines)


def test_nothing_said_in_a_conversation_is_quoted(
    kvrt: Kvrt, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong in it, not the echo of a terminal."""
    said = iter(
        [
            f"/{CANARY}",
            f"/set system {CANARY}",
            f"/set parameter stop {json.dumps({CANARY: 1})}",
            f"/set parameter stop {json.dumps([CANARY * 99])}",
            f"/set parameter temperature {CANARY}",
            f"/set {CANARY}",
            LATIN,
            CANARY,
            LONG,
        ]
    )

    def typed(prompt: str) -> str:
        if (text := next(said, None)) is None:
            raise EOFError
        return text

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("kvrt_cli.run._can_converse", lambda style: True)
    monkeypatch.setattr("kvrt_cli.run.read_prompt", lambda words, terminal: None)
    result = kvrt("run", chat_model, *SMALL, env={"KVRT_LOG_LEVEL": "INFO"})
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("error: ") == 7
    assert WORD not in result.stderr
    assert WORD not in result.stdout


def test_nothing_is_quoted_where_all_goes_well(kvrt: Kvrt, chat_model: str, tmp_path: Path) -> None:
    text = ("run", chat_model, CANARY, "--system", CANARY, "--stop", CANARY)
    memory = ("--offload", "host:1MiB", "--cache-dir", str(tmp_path / "kv"), "--verbose")
    for _ in range(2):
        result = kvrt(*text, *memory, *DUMMY, "-n", "2", env={"KVRT_LOG_LEVEL": "INFO"})
        assert result.exit_code == 0, result.stderr
        assert WORD not in result.stderr
