"""A model repository is data: nothing in it is run, imported or unpickled."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import KvrtError, ModelError, RequestError
from kvrt.model.chat.templates import Chat
from kvrt.model.loader import load_model
from kvrt.model.tokens.tokenizer import read_tokenizer
from kvrt.spi import Device
from tests.model.checkpoints import VOCAB, make_model, save_model, save_tokenizer

pytestmark = pytest.mark.promise("P25")

Event = tuple[str, tuple[Any, ...]]
_listeners: list[Callable[[str, tuple[Any, ...]], None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for listener in _listeners:
        listener(event, arguments)


sys.addaudithook(_hook)  # it can never be removed again, so it does nothing while no one listens

WATCHED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
           "socket.connect", "ctypes.dlopen")  # fmt: skip


@contextmanager
def watching(folder: Path) -> Iterator[list[Event]]:
    """Events that would mean that something of the folder was run."""
    found: list[Event] = []

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        inside = any(str(folder) in str(argument) for argument in arguments[:2])
        runs = event in ("exec", "compile", "import") and (inside or "hostile" in str(arguments))
        opens = (
            event == "open"
            and inside
            and not str(arguments[0]).endswith(
                ("config.json", "tokenizer.json", "model.safetensors", ".jinja")
            )
        )
        if runs or opens or event in WATCHED:
            found.append((event, arguments))

    _listeners.append(listen)
    try:
        yield found
    finally:
        _listeners.remove(listen)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A good model, in a folder that has everything which other loaders have been made to run."""
    folder = tmp_path / "hostile"
    save_tokenizer(save_model(make_model("llama-2"), folder))
    boom = f"open({str(tmp_path / 'boom')!r}, 'w')"
    for name in ("modeling_hostile", "configuration_hostile", "tokenization_hostile", "__init__",
                 "sitecustomize", "conftest"):  # fmt: skip
        (folder / f"{name}.py").write_text(boom)
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    for name in ("pytorch_model.bin", "model.pt", "tokenizer.pkl", "training_args.bin"):
        (folder / name).write_bytes(bomb)
    auto = {
        "AutoConfig": "configuration_hostile.Config",
        "AutoModelForCausalLM": "modeling_hostile.Model",
        "AutoTokenizer": ["tokenization_hostile.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": auto, "tokenizer_class": "hostile.Tokenizer"}
        (folder / name).write_text(json.dumps(content))
    return folder


def test_the_listener_hears_what_it_should(hostile: Path) -> None:
    with watching(hostile) as found:
        pickle.loads((hostile / "model.pt").read_bytes())
        exec(compile("1", str(hostile / "x.py"), "exec"))
    heard = {event for event, _ in found}
    assert {"open", "pickle.find_class", "compile"} <= heard


def test_loading_runs_and_unpickles_nothing(hostile: Path, tmp_path: Path, cpu: Device) -> None:
    load_model(hostile, cpu)  # whatever kvrt itself imports on first use is imported now
    with watching(hostile) as found:
        load_model(hostile, cpu)
    assert found == []
    assert not (tmp_path / "boom").exists()


def test_a_pickle_in_place_of_the_weights_is_not_opened(
    hostile: Path, tmp_path: Path, cpu: Device
) -> None:
    (hostile / "model.safetensors").unlink()
    with watching(hostile) as found, pytest.raises(ModelError, match="pickle"):
        load_model(hostile, cpu)
    assert found == []
    (hostile / "model.safetensors").write_bytes((hostile / "model.pt").read_bytes())
    with watching(hostile) as found, pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(hostile, cpu)
    assert found == []
    assert not (tmp_path / "boom").exists()


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__code__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch BOOM') }}",
    "{{ self.__init__.__globals__.__builtins__.open('BOOM', 'w') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{m.__class__}'.format_map({'m': ''}) }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{% set x = messages.append({'role': 'system'}) %}",
    "{% set x = messages[0].update(role='system') %}",
    "{{ namespace.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{% extends 'config.json' %}",
    "{{ range(10 ** 9) | list }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_cannot_leave_its_sandbox(hostile: Path, tmp_path: Path, template: str) -> None:
    (hostile / "chat_template.jinja").write_text(template.replace("BOOM", str(tmp_path / "boom")))
    tokenizer = read_tokenizer(hostile, VOCAB)
    messages = [{"role": "user", "content": "hi"}]
    with watching(hostile) as found:
        try:
            text = tokenizer.chat.render(Chat(messages)) if tokenizer.chat else ""
        except (ModelError, RequestError):
            text = ""
    assert not any(word in text for word in ("class", "<built-in", "module", "root:", "{'"))
    assert found == []
    assert messages == [{"role": "user", "content": "hi"}]
    assert not (tmp_path / "boom").exists()


def test_a_template_that_tries_is_called_unsafe(hostile: Path) -> None:
    (hostile / "chat_template.jinja").write_text(TEMPLATES[0])
    with pytest.raises(KvrtError, match="not safe"):
        read_tokenizer(hostile, VOCAB).encode_chat(Chat([{"role": "user", "content": "hi"}]))
