"""Quantised weights that outlive the process: a file for each model, format and device.

A file is a head of `HEAD` bytes and then the arena, as it was when it had been filled:

    magic | key | bytes of the arena | their XXH3-128 | XXH3-64 of all that | zeros

The key, SHA-256, covers what the weights are made of and how an arena is laid out, and the name of
a file is made of it. A file is written under another name and then renamed, so that it is whole or
not there, whoever writes it at the same time. Nothing is flushed: after a loss of power, the
digests tell. What is not what it should be is said, and made again.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import xxhash

from kvrt.units import MIB

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"kvrt quantised weights 1".ljust(32)
FIELDS = struct.Struct("<32s32sQ16s")
HEAD = 4096
BLOCK = 16 * MIB
ENDING, NEW = ".kvrt-weights", ".new"

SPARE = 256 * MIB
"""Of the disk, for others."""

ABANDONED_S = 60.0
"""After so long, a new file that no process holds was left by one that was killed."""

log = logging.getLogger(__name__)


class KeptWeights:
    """The files of a folder that hold arenas of one arrangement.

    Args:
        folder: made when something is to be kept in it, for its owner alone.
        arrangement: says what is where in an arena, and how: of equal weights, equal bytes.
    """

    def __init__(self, folder: Path, arrangement: str) -> None:
        self.folder = folder
        self._arrangement = hashlib.sha256(arrangement.encode()).digest()

    def any(self) -> bool:
        """Whether there is one, of whatever weights."""
        return next(self.folder.glob(f"{self._arrangement.hex()[:16]}-*{ENDING}"), None) is not None

    def path(self, content: str) -> Path:
        """The file for weights that are made of such content, whether it is there or not."""
        name = f"{self._arrangement.hex()[:16]}-{self._key(content).hex()[:32]}{ENDING}"
        return self.folder / name

    def read(self, content: str, memory: "Tensor") -> bool:
        """Read an arena, if it is there.

        Args:
            memory: uint8 [bytes], on any device. What it holds is undefined if it is not.

        Returns:
            Whether it is.
        """
        path = self.path(content)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
                wrong = _foreign(os.fstat(file.fileno())) or self._read(file, content, memory)
        except FileNotFoundError:
            return False
        except OSError as error:
            wrong = error.strerror or str(error)
        if wrong:
            log.warning("%s: %s; these weights are quantised again", path, wrong)
        return not wrong

    def write(self, content: str, memory: "Tensor") -> bool:
        """Keep an arena. Where that cannot be, it is said.

        Returns:
            Whether it is kept.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            if shutil.disk_usage(self.folder).free < HEAD + memory.numel() + SPARE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            number, new = tempfile.mkstemp(NEW, dir=self.folder)
            try:
                with open(number, "wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # so that nobody sweeps it
                    self._write(file, content, memory)
                    os.rename(new, self.path(content))
            finally:
                Path(new).unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "%s: quantised weights cannot be kept here, and are made again at the next start:"
                " %s",
                self.folder,
                error.strerror or error,
            )
            return False
        return True

    def _key(self, content: str) -> bytes:
        return hashlib.sha256(self._arrangement + content.encode()).digest()

    def _read(self, file: BinaryIO, content: str, memory: "Tensor") -> str:
        """What is wrong with a file; empty if nothing is, and it was read."""
        head, nbytes = file.read(HEAD), memory.numel()
        if len(head) != HEAD or head[FIELDS.size :] != _filled(head[: FIELDS.size]):
            return "is damaged"
        magic, key, size, digest = FIELDS.unpack_from(head)
        if (magic, key, size) != (MAGIC, self._key(content), nbytes):
            return "is of other weights than its name says"
        if os.fstat(file.fileno()).st_size != HEAD + nbytes:
            return "is not complete"
        found = xxhash.xxh3_128()
        for block, host in _by_blocks(memory):
            if file.readinto(host.numpy()) != len(host):  # type: ignore[attr-defined]
                return "is not complete"
            found.update(host.numpy().data)
            if host is not block:
                block.copy_(host)
        return "" if found.digest() == digest else "is damaged"

    def _write(self, file: BinaryIO, content: str, memory: "Tensor") -> None:
        digest = xxhash.xxh3_128()
        file.seek(HEAD)
        for block, host in _by_blocks(memory):
            if host is not block:
                host.copy_(block)
            digest.update(host.numpy().data)
            file.write(host.numpy().data)
        fields = FIELDS.pack(MAGIC, self._key(content), memory.numel(), digest.digest())
        file.seek(0)
        file.write(fields + _filled(fields))
        file.flush()

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        for path in self.folder.glob(f"*{NEW}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S:
                    path.unlink()


def _filled(fields: bytes) -> bytes:
    """What follows the fields of a head."""
    return xxhash.xxh3_64(fields).digest().ljust(HEAD - len(fields), b"\0")


def _foreign(found: os.stat_result) -> str:
    """Why somebody else may have written a file; empty: nobody else but the administrator."""
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by other users"
    return ""


def _by_blocks(memory: "Tensor") -> Iterator[tuple["Tensor", "Tensor"]]:
    """Blocks of an arena, and each as host memory: itself, or a place for a copy."""
    import torch

    for at in range(0, memory.numel(), BLOCK):
        block = memory[at : at + BLOCK]
        yield block, block if block.is_cpu else torch.empty(len(block), dtype=torch.uint8)
