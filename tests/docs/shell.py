"""A reader's shell: what a page's blocks say is typed there, one line after the other."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .pages import Block, Note, commands_of, lines_of, parts, split

SERVERS = {"serve": 8000, "llama-server": 8080, "route": 8080, "store": 7707}
"""Commands of kvrt that go on until somebody ends them, and the port that each has if none is
given. A reader has another terminal for each; here they are begun, and ended with the page, or by
the next one at the same port."""

BASH = ("bash", "-euo", "pipefail", "-c")
MOST_S = 300
"""For a line."""

LISTENS = re.compile(r"(serving|routing|keeping pages) at ")
PORTS = re.compile(r"(?<=:)\d{4}\b|(?<=--port )\d+\b")

HERE = {
    "10.0.0.7": "127.0.0.1",
    "/var/cache/kvrt": "./cache",
    "http://a:8000": "http://127.0.0.1:8000",
    "tcp://a:": "tcp://127.0.0.1:",
    "http://b:8000": "http://127.0.0.1:8001",
    "tcp://b:55": "tcp://127.0.0.1:56",
    "meta-llama/Llama-3.1-405B": "./Llama-3.2-1B",
    "owner/name:Q4_K_M": "./model-Q4_K_M.gguf",
    "owner/name": "./Llama-3.2-1B",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "./SmolLM2-135M-Instruct",
    "sentence-transformers/all-MiniLM-L6-v2": "./all-MiniLM-L6-v2",
    "openai/whisper-tiny": "./whisper-tiny",
    "--url URL": "--url http://127.0.0.1:8000",
    "60s": "2s",
    "kvrt bench DIRECTORY": "kvrt bench ./Qwen3-0.6B",
    "--context 32768": "--context 256",
    "--max-model-len 32768": "--max-model-len 512",
    "-p 1024 -n 128": "-p 96 -n 8",
}
"""Of what a page names: what is in its place here. Models would be fetched, machines are others."""

SIZES = re.compile(r"\b(\d+)GiB\b")
"""Of machines that are larger: a hundredth of that is here."""


@dataclass(frozen=True)
class Typed:
    """One line, and why it is not tried, if it is not."""

    where: str
    text: str
    why: str = ""

    @property
    def talks(self) -> bool:
        """Whether it may become a conversation, which needs a terminal."""
        return next(parts(split(self.text)), ())[:2] == ("kvrt", "run")

    @property
    def server(self) -> str:
        """Which of `SERVERS` it begins; "" if none."""
        words = next(parts(split(self.text)), ())
        goes_on = words[:1] == ("kvrt",) and not {"--new-key", "--help"} & {*words}
        return words[1] if goes_on and len(words) > 1 and words[1] in SERVERS else ""


def typed(block: Block) -> list[Typed]:
    """What is typed of a block: each of its lines.

    Raises:
        ValueError: a note is of no line.
    """
    found = []
    used: set[Note] = set()
    for number, text in lines_of(block):
        applies = [
            note
            for note in block.notes
            if note.kind == "not run" and (not note.of or begins(block, text, note.of))
        ]
        used.update(applies)
        found.append(Typed(f"{block.page}:{number}", text, applies[0].said if applies else ""))
    before = [Typed(block.where, f"{n.said}\n") for n in block.notes if n.kind == "first"]
    for note in block.notes:
        if note.kind == "not run" and note not in used:
            raise ValueError(f"{block.where}: nothing begins with {note.of!r}")
    return before + found


def begins(block: Block, text: str, of: str) -> bool:
    """Whether one of a line's commands begins with these words."""
    commands = commands_of(Block(block.page, block.line, block.language, text))
    return any(" ".join(command.words).startswith(of) for command in commands)


@dataclass
class Shell:
    """A folder in which lines run by bash, with an environment of its own.

    Args:
        folder: also the home.
        programs: a folder with the command `kvrt`.
        servers: those that go on, by their port.
    """

    folder: Path
    programs: Path
    servers: "dict[int, tuple[subprocess.Popen[bytes], Path]]" = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ours = {
            "HOME": str(self.folder),
            "PATH": os.pathsep.join(
                (str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"])
            ),
            "XDG_RUNTIME_DIR": str(self.folder),  # where those who share a device meet
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",  # so pip says whether an extra, and all that it brings, is here
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        for name, port in SERVERS.items():
            variable = f"KVRT_{name.upper().replace('-', '_')}_PORT"
            ours[variable] = str(self.port(str(port)))
        self.environment = {**os.environ, **ours}

    def port(self, said: str) -> int:
        """The port that stands for one of a page: the same for all lines."""
        if said not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.ports[said] = free.getsockname()[1]
        return self.ports[said]

    def here(self, text: str) -> str:
        """A line, or a file, with what is here in place of what is not."""
        for said, meant in HERE.items():
            text = text.replace(said, meant)
        text = SIZES.sub(lambda size: f"{int(size[1]) * 10}MiB", text)
        return PORTS.sub(lambda port: str(self.port(port[0])), text)

    def keep(self, name: str, text: str) -> None:
        """A file that a page shows."""
        (self.folder / name).write_text(self.here(text))

    def type(self, line: Typed) -> None:
        """One line, to its end; of a server, until it listens.

        Raises:
            AssertionError: it fails.
        """
        text = self.here(line.text)
        if line.server:
            self._begin(line, text)
            return
        code, said = (self._talk if line.talks else self._run)(text)
        assert not code, f"{line.where}: {text}ends with {code}:\n{said}"
        if "--new-key" in text:  # a reader has it by heart
            self.environment["KEY"] = said.split()[-1]

    def _run(self, text: str) -> tuple[int, str]:
        """A line without a terminal: its exit status, and what it says."""
        with subprocess.Popen(
            [*BASH, text], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=MOST_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has begun
        return process.returncode, said.decode(errors="replace")

    def _talk(self, text: str) -> tuple[int, str]:
        """The same at one, of somebody who has nothing to say: Ctrl-D until it ends."""
        master, slave = os.openpty()
        process = subprocess.Popen(
            [*BASH, text], cwd=self.folder, env=self.environment,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        said, end = b"", time.monotonic() + MOST_S
        try:
            while time.monotonic() < end:
                if select.select([master], [], [], 0.2)[0]:
                    with suppress(OSError):  # nobody has it open any more
                        if piece := os.read(master, 65536):
                            said += piece
                            continue
                    break
                os.write(master, b"\x04")
            return process.wait(1), said.decode(errors="replace")
        finally:
            process.kill()
            process.wait()
            os.close(master)

    def _begin(self, line: Typed, text: str) -> None:
        given = re.search(r"--port (\d+)", text)
        port = int(given[1]) if given else self.port(str(SERVERS[line.server]))
        self._end(port)
        log = self.folder / f".log-{port}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}"], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        end = time.monotonic() + 120
        try:
            while not LISTENS.search(said := log.read_text(errors="replace")):
                ended = process.poll()
                assert ended is None, f"{line.where}: {text}ends with {ended}:\n{said}"
                assert time.monotonic() < end, f"{line.where}: {text}does not listen:\n{said}"
                time.sleep(0.05)
        except AssertionError:
            process.kill()
            process.wait()
            raise
        self.servers[port] = process, log

    def _end(self, port: int) -> None:
        """End a server as Ctrl-C does, if there is one.

        Raises:
            AssertionError: it does not end, or says that something was wrong.
        """
        if port not in self.servers:
            return
        process, log = self.servers.pop(port)
        process.terminate()
        try:
            code = process.wait(60)
        finally:
            process.kill()
        assert not code, f"{process.args!r} ends with {code}:\n{log.read_text()}"

    def close(self) -> None:
        """End all servers."""
        for port in [*self.servers]:
            self._end(port)
