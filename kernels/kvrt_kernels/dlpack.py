"""A tensor over memory that somebody else owns, at an address, of any device that torch knows.

Through DLPack (https://dmlc.github.io/dlpack, ABI version 0), whose structure is filled in here.
torch does not ask the driver about the address, so it may be a range with holes.
"""

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CPU, CUDA, ROCM = 1, 2, 10
"""Device types of DLPack."""

_UNSIGNED = 1


class _Managed(ctypes.Structure):
    """``DLManagedTensor``, and behind it the shape it points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    )


_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def bytes_at(address: int, nbytes: int, device_type: int, device_index: int) -> "Tensor":
    """uint8 [nbytes] over the memory at `address`. It owns nothing: the memory must outlive it.

    Args:
        device_type: `CPU`, `CUDA` or `ROCM`, which torch must have been built for.
        device_index: of that type.
    """
    from torch.utils.dlpack import from_dlpack

    # In C's own memory, freed by C's own function: a tensor may die after Python has ended.
    block = _libc.malloc(ctypes.sizeof(_Managed))
    if not block:
        raise MemoryError("no memory for a tensor's description")
    managed = _Managed.from_address(block)
    managed.data = address
    managed.device_type, managed.device_id = device_type, device_index
    managed.ndim, managed.length = 1, nbytes
    managed.shape = block + _Managed.length.offset
    managed.strides = None
    managed.type_code, managed.type_bits, managed.type_lanes = _UNSIGNED, 8, 1
    managed.byte_offset = 0
    managed.context = None
    managed.deleter = ctypes.cast(_libc.free, ctypes.c_void_p)
    # If torch refuses it, torch has freed it or not, by its version: a hundred bytes may be lost.
    return from_dlpack(_new_capsule(block, b"dltensor", None))
