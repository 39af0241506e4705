"""What all checks share: how a broken rule is reported, and what is known of the device."""

from collections.abc import Mapping
from typing import get_args

import torch

from kvrt.errors import ContractError
from kvrt.spi import DeviceInfo, DType, KVFormat

TORCH_DTYPE: Mapping[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def broken(argument: str, value: object, rule: str) -> ContractError:
    """The error to raise when `argument` has a `value` that breaks `rule`."""
    if isinstance(value, torch.Tensor):
        value = described(value)
    return ContractError(f"{argument} = {value}: {rule}")


def described(tensor: torch.Tensor) -> str:
    """What checks look at in a tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device}"


def whole(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


class Facts:
    """A device's info, in the form that checks ask for, and whether it is still open."""

    def __init__(self, info: DeviceInfo) -> None:
        if not whole(info.granularity) or info.granularity.bit_count() != 1:
            raise broken("info.granularity", info.granularity, "must be a power of two")
        dtypes, formats = get_args(DType), get_args(KVFormat)
        for field, known in (
            ("compute_dtypes", dtypes),
            ("weight_dtypes", dtypes),
            ("kv_formats", formats),
        ):
            declared = getattr(info, field)
            if not declared or not set(declared) <= set(known):
                raise broken(f"info.{field}", declared, f"must name some of {', '.join(known)}")
        if not all(whole(size) and size > 0 for size in info.head_dims):
            raise broken("info.head_dims", info.head_dims, "must be positive whole numbers")
        self.info = info
        self.compute_dtypes = frozenset(TORCH_DTYPE[name] for name in info.compute_dtypes)
        self.weight_dtypes = frozenset(TORCH_DTYPE[name] for name in info.weight_dtypes)
        self.torch_device = torch.device(info.torch_device)
        self.closed = False

    def check_open(self, method: str) -> None:
        if self.closed:
            raise ContractError(f"{method} was called after the device's close()")

    def check_on_device(self, argument: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise broken(argument, repr(tensor), "must be a tensor")
        if tensor.device != self.torch_device:
            raise broken(argument, tensor, f"must be on {self.torch_device}")

    def check_activation(self, argument: str, tensor: torch.Tensor) -> None:
        self.check_on_device(argument, tensor)
        if tensor.dtype not in self.compute_dtypes:
            allowed = ", ".join(self.info.compute_dtypes)
            raise broken(argument, tensor, f"must have one of the compute dtypes {allowed}")
