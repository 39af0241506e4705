"""What the operating system says about this process. Linux only."""

import ctypes
import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None)

PEEK = 16
"""Bytes that `peek` reads."""


def physical_bytes() -> int:
    """Physical memory this process holds: its private pages and its memory files.

    Pages of a memory file are counted in the file, whether they are mapped or not, so that a chunk
    that is only unmapped still counts. What malloc has kept of freed memory does not count, nor
    what only waits for the garbage collector: freed between two readings, that would hide growth.
    """
    gc.collect()
    if hasattr(_libc, "malloc_trim"):  # glibc
        _libc.malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    private = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    total = int(private.split()[1]) * 1024
    files: dict[int, int] = {}  # by inode: a duplicated descriptor is the same file
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith("/memfd:"):
                stat = os.stat(descriptor)
                files[stat.st_ino] = stat.st_blocks * 512
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return total + sum(files.values())


def peek(address: int) -> bytes | None:
    """The first `PEEK` bytes at an address; None if it cannot be read.

    The kernel does the reading, so that a hole is an answer and not the end of the process.
    """
    source = (ctypes.c_char * PEEK).from_address(address)
    reader, writer = os.pipe()
    try:
        os.write(writer, source)
        return os.read(reader, PEEK)
    except OSError:  # EFAULT
        return None
    finally:
        os.close(reader)
        os.close(writer)


@dataclass(frozen=True, slots=True)
class Resources:
    """Countable things a process can leak: memory mappings, file descriptors, threads."""

    mappings: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> "Resources":
        return cls(
            mappings=Path("/proc/self/maps").read_bytes().count(b"\n"),
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            threads=threading.active_count(),
        )
