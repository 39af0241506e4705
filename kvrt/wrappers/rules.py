"""What all checks share: how a broken rule is reported, and what is known of the device."""

from collections.abc import Mapping, Set
from typing import get_args

import torch

from kvrt.errors import ContractError, in_one_line
from kvrt.spi import Capability, DeviceInfo, DType, KVFormat, Ticket

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
    """A device's info, in the form that checks ask for, and whether it is still open.

    Args:
        info: the device's own.
        owner: whose fault a wrong result is, for the message; empty if nobody knows.
    """

    def __init__(self, info: DeviceInfo, owner: str = "") -> None:
        self.owner = owner
        if not isinstance(info, DeviceInfo):
            raise self.wrong("info", repr(info), "must be a kvrt.spi.DeviceInfo")
        if not whole(info.granularity) or info.granularity.bit_count() != 1:
            raise self.wrong("info.granularity", info.granularity, "must be a power of two")
        capabilities = info.capabilities
        if not isinstance(capabilities, Set) or not all(
            isinstance(one, Capability) for one in capabilities
        ):
            rule = "must be a set of members of kvrt.spi.Capability"
            raise self.wrong("info.capabilities", capabilities, rule)
        dtypes, formats = get_args(DType), get_args(KVFormat)
        for field, known in (
            ("compute_dtypes", dtypes),
            ("weight_dtypes", dtypes),
            ("kv_formats", formats),
        ):
            declared = getattr(info, field)
            if not declared or not set(declared) <= set(known):
                rule = f"must name some of {', '.join(known)}"
                raise self.wrong(f"info.{field}", declared, rule)
        if not all(whole(size) and size > 0 for size in info.head_dims):
            raise broken("info.head_dims", info.head_dims, "must be positive whole numbers")
        self.info = info
        self.compute_dtypes = frozenset(TORCH_DTYPE[name] for name in info.compute_dtypes)
        self.weight_dtypes = frozenset(TORCH_DTYPE[name] for name in info.weight_dtypes)
        self.torch_device = self._known_to_torch(info.torch_device)
        self.closed = False

    def wrong(self, result: str, value: object, rule: str) -> ContractError:
        """The error to raise when the device itself gave a `value` that breaks `rule`."""
        return broken(f"{self.owner}: {result}" if self.owner else result, value, rule)

    def ticket(self, result: str, ticket: Ticket) -> Ticket:
        """The ticket a device gave, if it is one."""
        if not callable(getattr(ticket, "wait", None)) or not callable(
            getattr(ticket, "done", None)
        ):
            raise self.wrong(result, repr(ticket), "must be a ticket, with done() and wait()")
        return ticket

    def _known_to_torch(self, name: str) -> torch.device:
        try:
            return torch.device(name)
        except (RuntimeError, TypeError) as error:
            rule = f"torch knows no such device ({in_one_line(error)})"
            raise self.wrong("info.torch_device", repr(name), rule) from error

    def check_open(self, method: str) -> None:
        if self.closed:
            raise ContractError(f"{method} was called after the device's close()")

    def check_on_device(self, argument: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise broken(argument, repr(tensor), "must be a tensor")
        if tensor.device != self.torch_device:
            raise broken(argument, tensor, f"must be on {self.torch_device}")

    def check_vector(self, argument: str, tensor: torch.Tensor, length: int) -> None:
        self.check_floats(argument, tensor, (length,))

    def check_floats(self, argument: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        """What is float32 whatever the compute dtype is."""
        self.check_on_device(argument, tensor)
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise broken(argument, tensor, f"must be float32 {list(shape)}")
        if not tensor.is_contiguous():
            raise broken(argument, tensor, "must be contiguous")

    def check_activation(self, argument: str, tensor: torch.Tensor) -> None:
        self.check_on_device(argument, tensor)
        if tensor.dtype not in self.compute_dtypes:
            allowed = ", ".join(self.info.compute_dtypes)
            raise broken(argument, tensor, f"must have one of the compute dtypes {allowed}")
