"""`Checked` refuses what the rules of packed products do not allow, before the device is called."""

from collections.abc import Callable, Iterator

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import Matrix, PackedMatrices, WeightFormat
from kvrt.testing.matrices import FORMATS, random_rows
from kvrt.testing.packing import PackingDevice, TorchMatrices
from kvrt.wrappers import Checked, Traced
from kvrt.wrappers.traced import Call

FORMAT = FORMATS["q4_0"]


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def packed(calls: list[Call]) -> Iterator[PackedMatrices]:
    device = Checked(Traced(PackingDevice(registry.load("null").open()), calls.append))
    found = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    assert found is not None
    yield found
    device.close()


def aligned(nbytes: int) -> torch.Tensor:
    memory = torch.zeros(nbytes + 128, dtype=torch.uint8)
    return memory[-memory.data_ptr() % 128 :][:nbytes]


def matrix(packed: PackedMatrices, out: int, width: int = 64) -> Matrix:
    plain = random_rows(FORMAT, out, width, 0)
    return packed.pack(FORMAT, plain, width, aligned(packed.nbytes(FORMAT, out, width)))


def rows(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


PLAIN = random_rows(FORMAT, 4, 64, 0)
SIZE = 4 * FORMAT.row_bytes(64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FORMAT, PLAIN, 48, aligned(SIZE)), "width = 48: must be whole groups of q4_0"),
        ((FORMAT, PLAIN, 32, aligned(SIZE)), r"plain = .*must be uint8 \[out features, 20\]"),
        ((FORMAT, PLAIN.int(), 64, aligned(SIZE)), "plain = int32"),
        ((FORMAT, PLAIN, 64, aligned(SIZE + 1)), rf"into = .*must be uint8 \[{SIZE}\]"),
        ((FORMAT, PLAIN, 64, aligned(SIZE + 1)[1:]), "into = 0x.*at a multiple of 128 bytes"),
    ],
)
def test_what_is_packed_is_checked(
    packed: PackedMatrices, calls: list[Call], arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        packed.pack(*arguments)  # type: ignore[arg-type]
    assert all(call.name != "packed.pack" for call in calls)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.linear(rows(2, 64), ()), r"weight = \(\): must be one or more matrices"),
        (lambda p: p.linear(rows(2, 64), (rows(4, 64),)), "must be one or more matrices"),
        (lambda p: p.linear(rows(2, 32), (matrix(p, 4),)), "width 64: must take 32 features"),
        (lambda p: p.linear(rows(64), (matrix(p, 4),)), r"x = .*\[tokens, in features\]"),
        (lambda p: p.linear(rows(2, 64), (matrix(p, 4),), rows(5)), r"bias = .*float32 \[4\]"),
        (lambda p: p.linear(rows(2, 64), (matrix(p, 4),) * 2, rows(4)), r"bias = .*float32 \[8\]"),
        (
            lambda p: p.linear(rows(2, 64), (matrix(p, 4),), None, rows(2, 3)),
            r"residual = .*\[2, 4\]",
        ),
        (
            lambda p: p.linear(rows(2, 64), (matrix(p, 4),), None, None, rows(2, 8)[:, ::2]),
            r"out = .*\[2, 4\] .*contiguous",
        ),
        (lambda p: p.gated_linear(rows(2, 64), (matrix(p, 3),), "silu"), r"\[3\] rows: must be"),
        (
            lambda p: p.gated_linear(rows(2, 64), (matrix(p, 3), matrix(p, 5)), "silu"),
            r"matrices of \[3, 5\] rows: must be gate and up in one matrix",
        ),
        (lambda p: p.gated_linear(rows(2, 64), (matrix(p, 4),), "relu"), "activation = 'relu'"),
        (lambda p: p.rows(matrix(p, 4), rows(3), rows(3, 64)), "indices = float32"),
        (lambda p: p.rows(matrix(p, 4), torch.arange(3), rows(2, 64)), r"out = .*\[3, 64\]"),
    ],
)
def test_products_are_checked(
    packed: PackedMatrices,
    calls: list[Call],
    call: Callable[[PackedMatrices], object],
    message: str,
) -> None:
    with pytest.raises(ContractError, match=message):
        call(packed)
    done = {call.name for call in calls}
    assert not done & {"packed.linear", "packed.gated_linear", "packed.rows"}


def test_products_are_traced(packed: PackedMatrices, calls: list[Call]) -> None:
    weight = matrix(packed, 4)
    packed.linear(rows(2, 64), (weight,))
    packed.gated_linear(rows(2, 64), (weight,), "silu")
    packed.rows(weight, torch.arange(3), rows(3, 64))
    names = [call.name for call in calls if call.name.startswith("packed.")]
    assert names[-3:] == ["packed.linear", "packed.gated_linear", "packed.rows"]


def test_a_format_that_the_device_does_not_multiply_is_refused(
    packed: PackedMatrices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchMatrices, "multiplies", lambda self, format: format.bits == 8)
    with pytest.raises(ContractError, match="format = q4_0: must be one that the device multi"):
        matrix(packed, 4)


def wrong_matrix(
    _: TorchMatrices, format: WeightFormat, plain: torch.Tensor, width: int, into: torch.Tensor
) -> Matrix:
    return Matrix(format, into.clone(), len(plain), width)


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        ("pack", wrong_matrix, r"pack\(\) = .*must be the matrix in `into`"),
        ("nbytes", lambda *_: 0, r"nbytes\(\) = 0: must be a positive whole number"),
    ],
)
def test_a_wrong_answer_of_the_device_is_noticed(
    packed: PackedMatrices,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    wrong: object,
    message: str,
) -> None:
    monkeypatch.setattr(TorchMatrices, method, wrong)
    with pytest.raises(ContractError, match=message):
        matrix(packed, 4)
