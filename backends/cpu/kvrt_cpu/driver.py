"""The system calls this backend is made of: one function a call, its status looked at once.

Every function raises `OutOfMemory` for ENOMEM and ENOSPC and `DeviceError`, with the call's and the
error's name, for anything else. Addresses and lengths are bytes. See mmap(2), mremap(2),
madvise(2), memfd_create(2) and fallocate(2).
"""

import ctypes
import errno
import os

from kvrt.errors import DeviceError, KvrtError, OutOfMemory

from . import host

PROT_NONE = 0
PROT_READ_WRITE = 1 | 2

MADV_DONTNEED = 4
MADV_DONTFORK = 10
MADV_HUGEPAGE = 14
MADV_POPULATE_WRITE = 23
MADV_COLLAPSE = 25

_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 0x01, 0x02, 0x10
_MAP_ANONYMOUS, _MAP_NORESERVE = 0x20, 0x4000
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_MFD_CLOEXEC = 1
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_FAILED = ctypes.c_void_p(-1).value

_address, _size, _int, _offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
_libc = ctypes.CDLL(None, use_errno=True)


def _declare(name: str, result: type, *arguments: type) -> "ctypes._NamedFuncPointer":
    function = getattr(_libc, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_mmap = _declare("mmap", _address, _address, _size, _int, _int, _int, _offset)
_mremap = _declare("mremap", _address, _address, _size, _size, _int, _address)
_munmap = _declare("munmap", _int, _address, _size)
_mprotect = _declare("mprotect", _int, _address, _size, _int)
_madvise = _declare("madvise", _int, _address, _size, _int)
_fallocate = _declare("fallocate", _int, _int, _int, _offset, _offset)
_memfd_create = _declare("memfd_create", _int, ctypes.c_char_p, ctypes.c_uint)


def _error(call: str, nbytes: int) -> KvrtError:
    number = ctypes.get_errno()
    code = errno.errorcode.get(number, str(number))
    what = f"{call} of {nbytes} bytes failed with {code} ({os.strerror(number)})"
    if number not in (errno.ENOMEM, errno.ENOSPC):
        return DeviceError(what, call=call, code=code)
    count, limit = host.mappings()
    if count > limit - 16:
        return OutOfMemory(
            f"{what}: the process has {count} memory mappings and vm.max_map_count is {limit}",
            needed=nbytes,
            fix=host.raise_map_count(limit),
        )
    return OutOfMemory(what, needed=nbytes, fix="free memory, or raise the limit (ulimit -v)")


def reserve(nbytes: int) -> int:
    """New addresses without memory behind them: any access is SIGSEGV."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    address = _mmap(None, nbytes, PROT_NONE, flags, -1, 0)
    if address == _FAILED:
        raise _error("mmap", nbytes)
    return int(address)


def clear(address: int, nbytes: int) -> None:
    """Replace whatever is mapped here by addresses without memory, in one step."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    if _mmap(address, nbytes, PROT_NONE, flags, -1, 0) == _FAILED:
        raise _error("mmap", nbytes)


def map_file(address: int, nbytes: int, fd: int, offset: int) -> None:
    """Replace whatever is mapped here by a shared, writable view of a file, in one step."""
    flags = _MAP_SHARED | _MAP_FIXED
    if _mmap(address, nbytes, PROT_READ_WRITE, flags, fd, offset) == _FAILED:
        raise _error("mmap", nbytes)


def move(source: int, target: int, nbytes: int) -> None:
    """Move the memory at `source` to `target`, replacing what is there; no byte is copied.

    `source` stays mapped, without memory: no other thread's mmap can land there (Linux 5.7).
    """
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED | _MREMAP_DONTUNMAP
    if _mremap(source, nbytes, nbytes, flags, target) == _FAILED:
        raise _error("mremap", nbytes)


def unmap(address: int, nbytes: int) -> None:
    if _munmap(address, nbytes):
        raise _error("munmap", nbytes)


def allow_access(address: int, nbytes: int) -> None:
    if _mprotect(address, nbytes, PROT_READ_WRITE):
        raise _error("mprotect", nbytes)


def advise(address: int, nbytes: int, advice: int) -> None:
    if _madvise(address, nbytes, advice):
        raise _error("madvise", nbytes)


def memory_file(name: str, nbytes: int) -> int:
    """A file descriptor of a sparse file in memory of that size; it takes none yet."""
    fd = _memfd_create(name.encode(), _MFD_CLOEXEC)
    if fd < 0:
        raise _error("memfd_create", nbytes)
    try:
        os.ftruncate(fd, nbytes)
    except OSError as error:
        os.close(fd)
        ctypes.set_errno(error.errno or 0)
        raise _error("ftruncate", nbytes) from error
    return int(fd)


def allocate(fd: int, offset: int, nbytes: int) -> None:
    """Take physical memory for a part of a memory file."""
    while _fallocate(fd, _FALLOC_KEEP_SIZE, offset, nbytes):
        if ctypes.get_errno() != errno.EINTR:  # any signal ends the call half-way
            raise _error("fallocate", nbytes)


def punch(fd: int, offset: int, nbytes: int) -> None:
    """Give a part of a memory file back to the system."""
    if _fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, nbytes):
        raise _error("fallocate", nbytes)
