"""What a rank besides the first does: it loads its part of the model, and then what it is told.

It ends as soon as rank 0 has gone. Whatever it meets that it cannot go on from, it says, and ends:
to wait for it would be to wait for ever.
"""

import contextlib
import ctypes
import functools
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError, ContractError, KvrtError, OutOfMemory, PeerLost, in_one_line
from kvrt.executor.apply import Attempt
from kvrt.executor.interface import Failed
from kvrt.executor.local import LocalExecutor
from kvrt.model.layouts import layouts_of
from kvrt.model.loader import Model
from kvrt.model.shard import Split
from kvrt.net.address import parse_address
from kvrt.ranks.door import COME_S, Place, reach
from kvrt.ranks.joining import Hello, join, threads_of
from kvrt.ranks.link import Closed, Ended, Kind, Link
from kvrt.ranks.loading import load
from kvrt.ranks.messages import StepReader, digest_of, ops_from_bytes
from kvrt.ranks.node import key_of
from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions

PR_SET_PDEATHSIG = 1


class Rank:
    """One rank, as long as its process lives.

    Args:
        link: to rank 0.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox: queue.SimpleQueue[tuple[Kind, bytes]] = queue.SimpleQueue()
        self._calls: Callable[[], int] = lambda: 0
        self._attempt: Attempt | Failed | None = None
        self._reader = StepReader()
        threading.Thread(target=self._listen, name="kvrt-link", daemon=True).start()

    def run(self) -> None:
        """Until rank 0 goes, or something fails.

        Raises:
            KvrtError: it cannot go on.
        """
        hello = Hello.read(self._hello())
        config = hello.config
        options = DeviceOptions(threads=threads_of(config), exact=config.activations == "exact")
        device = open_device(hello.backend, hello.device, options, check_layers=config.debug)
        self._model = load(
            config, device, shard=hello.shard, join=lambda: self._join(device, hello)
        )
        loaded = {"free": device.memory.info().free, "model": self._model.fingerprint}
        self._meet(loaded)
        self._make_cache(device, self._model, config)
        obey: dict[Kind, Callable[[bytes], None]] = {
            Kind.ATTEMPT: self._try,
            Kind.SETTLE: self._settle,
            Kind.UNDO: self._undo,
            Kind.STEP: self._step,
            Kind.FILL: self._fill,
            Kind.DRAIN: lambda body: self._executor.drain(json.loads(body)),
            Kind.DIGEST: self._digest,
            Kind.COPY: self._copy,
        }
        while True:
            kind, body = self._inbox.get()
            obey[kind](body)

    def _join(self, device: Device, hello: Hello) -> Split:
        self._split = split = join(device, hello, self._meet)
        self._calls = functools.partial(_calls_of, split)
        return split

    # --- what rank 0 says --------------------------------------------------------------------

    def _hello(self) -> bytes:
        kind, body = self._inbox.get()
        if kind is Kind.FAILED:
            said = json.loads(body)
            raise ConfigError(said["message"], fix=said["fix"])
        if kind is not Kind.HELLO:
            raise ContractError(f"rank 0 said {kind.name} in place of {Kind.HELLO.name}")
        return body

    def _listen(self) -> None:
        try:
            while True:
                kind, body = self._link.receive()
                if kind is Kind.PING:
                    self._link.send(Kind.PONG, json.dumps(self._calls()).encode())
                else:
                    self._inbox.put((kind, body))
        except Closed as error:  # whatever the other threads are doing
            os._exit(0 if isinstance(error, Ended) else 1)

    def _expect(self, wanted: Kind) -> bytes:
        kind, body = self._inbox.get()
        if kind is not wanted:
            raise ContractError(f"rank 0 said {kind.name} in place of {wanted.name}")
        return body

    def _meet(self, said: Any) -> list[Any]:
        self._link.send(Kind.MEET, json.dumps(said).encode())
        every: list[Any] = json.loads(self._expect(Kind.MEET))
        return every

    def _done(self, answer: object = None) -> None:
        self._link.send(Kind.DONE, json.dumps(answer).encode())

    # --- pages -------------------------------------------------------------------------------

    def _make_cache(self, device: Device, model: Model, config: RuntimeConfig) -> None:
        asked = json.loads(self._expect(Kind.CACHE))
        layouts = layouts_of(
            model.shard.kept(model.spec), config.page_size, asked["keys"], model.decoder.dtype
        )
        forward = model.decoder.forward
        self._executor = LocalExecutor(
            device, layouts, asked["pages"], forward, poison=config.debug
        )
        self._done(repr(self._executor.geometries))

    def _try(self, body: bytes) -> None:
        self._executor.finish()  # it may be a chunk that goes
        self._attempt = self._executor.attempt(ops_from_bytes(body))
        failed = isinstance(self._attempt, Failed)
        self._done(_short(self._attempt.error) if isinstance(self._attempt, Failed) else None)
        if failed:
            self._attempt = None

    def _settle(self, _: bytes) -> None:
        assert isinstance(self._attempt, Attempt)
        settled, self._attempt = self._executor.settle(self._attempt), None
        if isinstance(settled, Failed):  # others have gone on
            raise settled.error

    def _undo(self, _: bytes) -> None:
        if isinstance(self._attempt, Attempt):
            self._attempt.undo()
        self._attempt = None

    def _fill(self, body: bytes) -> None:
        try:
            self._executor.fill(json.loads(body))
        except OutOfMemory as error:
            self._done(_short(error))
        else:
            self._done()

    def _digest(self, _: bytes) -> None:
        self._done(digest_of(self._executor.mapped, self._reader.pages))

    def _copy(self, body: bytes) -> None:
        world = self._split.world
        for saves, page, group in json.loads(body):
            here = self._executor.page(page, group)
            if saves:
                world.send(here, 0)
            else:
                came = torch.empty_like(here)
                world.receive(came, 0)
                here.copy_(came)
        self._executor.finish()

    # --- computing ---------------------------------------------------------------------------

    def _step(self, body: bytes) -> None:
        self._executor.launch(self._reader.read(body)).fence.wait()


def _calls_of(split: Split) -> int:
    return split.world.calls + (0 if split.tensor is None else split.tensor.calls)


def _short(error: OutOfMemory) -> dict[str, object]:
    return {"message": str(error), "needed": error.needed, "free": error.free}


def serve(link: Link, *, tell: bool = False) -> None:
    """Be a rank, until it ends; the process ends with it.

    Args:
        tell: say on standard error, too, why it cannot go on: rank 0 is elsewhere.
    """
    try:
        Rank(link).run()
    except BaseException as error:
        said = {
            "kind": type(error).__name__,
            "message": str(error) if isinstance(error, KvrtError) else in_one_line(error),
            "fix": getattr(error, "fix", ""),
            "peer": isinstance(error, PeerLost | Closed),
        }
        with contextlib.suppress(Closed):
            link.send(Kind.FAILED, json.dumps(said).encode())
        if tell:
            print(f"error: {said['message']}", said["fix"], file=sys.stderr, flush=True)
        os._exit(1)  # other ranks wait within a call for this one


def main(arguments: Sequence[str]) -> None:
    """A process that belongs to another, and ends with it.

    Args:
        arguments: ``given`` and the number of that process, which is rank 0's, and of a connected
            socket; or ``reach``, that number, and rank 0's address, the key's file, and which rank
            it is, of how many, on how many machines.
    """
    way, parent, *rest = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it has gone before that
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for its parent, which ends it
    if way == "given":
        serve(Link(socket.socket(fileno=int(rest[0]))))
    address, key, *place = rest
    where = parse_address(address)
    secret = key_of(Path(key) if key else None, where)
    try:
        link = reach(where, secret, Place(*map(int, place)), os.getpid(), COME_S)
    except KvrtError as error:
        sys.exit(f"error: {error}\n{error.fix}")
    serve(link, tell=True)


if __name__ == "__main__":
    main(sys.argv[1:])
