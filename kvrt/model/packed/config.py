"""The way that a config.json says its checkpoint's matrices are quantised."""

from collections.abc import Callable, Mapping

from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.packed.method import Method
from kvrt.model.packed.methods import AWQ, GPTQ, Float4, Float8, IntQuantized, PackQuantized
from kvrt.model.packed.nf4 import FourBit

LARGEST = 1 << 20
"""Of a group: beyond it, a value is damage."""

FLOAT4 = {"nvfp4-pack-quantized": Float4(16), "mxfp4-pack-quantized": Float4(32)}
"""The layouts of compressed-tensors for numbers of E2M1."""


def read_method(fields: Fields) -> Method | None:
    """What ``quantization_config`` says; None: there is none, and the matrices are floats.

    Which matrices are kept so, the files themselves say: lists of those that are not
    (``modules_to_not_convert``, ``ignore``) are not needed.

    Raises:
        ModelError: a field is missing or out of range, or the method is not supported; the message
            lists those that are.
    """
    if not fields.has("quantization_config"):
        return None
    section = fields.section("quantization_config")
    name = section.text("quant_method")
    if name not in METHODS:
        raise section.error(
            "quant_method",
            f"is {shown(name)}, which is not supported; supported are {', '.join(METHODS)}",
            fix="use the model's float32, bfloat16 or float16 checkpoint, or a GGUF file of it",
        )
    return METHODS[name](section)


def _gptq(fields: Fields) -> Method:
    layout = fields.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise fields.error(
            "checkpoint_format", f"is {shown(layout)}; supported are gptq and gptq_v2"
        )
    return GPTQ(
        bits=_bits(fields, "bits", 2, 3, 4, 8),
        group=_group(fields),
        less_one=layout == "gptq",
        ordered=fields.flag("desc_act", False),
    )


def _awq(fields: Fields) -> Method:
    _bits(fields, "bits", 4)
    version = fields.text("version", "gemm")
    if version.lower() != "gemm":
        raise fields.error("version", f"is {shown(version)}; supported is gemm")
    return AWQ(_group(fields))


def _compressed(fields: Fields) -> Method:
    layout = fields.text("format")
    groups = fields.section("config_groups")
    found = {_weights(layout, groups.section(name)) for name in groups.names()}
    if len(found) != 1:
        raise fields.error(
            "config_groups",
            f"has {len(found)} ways to quantise weights; supported is one for all",
        )
    return found.pop()


def _weights(layout: str, group: Fields) -> Method:
    fields = group.section("weights")
    strategy = fields.text("strategy")
    kind = fields.text("type", "int")
    if layout in FLOAT4:
        _bits(fields, "num_bits", 4)
        method = FLOAT4[layout]
        if kind != "float" or _group(fields) != method.group:
            raise fields.error("group_size", f"must be {method.group}, of type float, in {layout}")
        return method
    if kind == "float":
        if layout not in ("float-quantized", "naive-quantized"):
            raise group.error("weights", f"are floats in the format {shown(layout)}")
        _bits(fields, "num_bits", 8)
        return Float8("weight_scale", _block(fields, strategy))
    if strategy not in ("group", "channel"):
        raise fields.error("strategy", f"is {shown(strategy)}; supported are group and channel")
    size = _group(fields) if strategy == "group" else 0
    symmetric = fields.flag("symmetric", True)
    if layout == "pack-quantized":
        ordered = fields.has("actorder") and fields.text("actorder") == "group"
        return PackQuantized(_bits(fields, "num_bits", 2, 4, 8), size, symmetric, ordered)
    if layout in ("int-quantized", "naive-quantized"):
        _bits(fields, "num_bits", 8)
        return IntQuantized(size, symmetric)
    raise fields.error(
        "type",
        f"is int in the format {shown(layout)}; supported are pack-quantized and int-quantized",
    )


def _block(fields: Fields, strategy: str) -> tuple[int, int]:
    if strategy == "tensor":
        return 0, 0
    if strategy == "channel":
        return 1, 0
    if strategy == "block":
        return _pair(fields, "block_structure")
    raise fields.error("strategy", f"is {shown(strategy)}; supported are tensor, channel and block")


def _fp8(fields: Fields) -> Method:
    return Float8("weight_scale_inv", _pair(fields, "weight_block_size"))


def _bitsandbytes(fields: Fields) -> Method:
    if fields.flag("load_in_8bit", False):
        return IntQuantized(0, symmetric=True, scales="SCB", times=127)
    if not fields.flag("load_in_4bit", False):
        raise fields.error("load_in_4bit", "is false, and load_in_8bit too; expected one of them")
    kind = fields.text("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise fields.error("bnb_4bit_quant_type", f"is {shown(kind)}; supported are nf4 and fp4")
    return FourBit(kind, nested=fields.flag("bnb_4bit_use_double_quant", False))


def _pair(fields: Fields, name: str) -> tuple[int, int]:
    pair = fields.items(name, int)
    if len(pair) != 2 or not all(1 <= size <= LARGEST for size in pair):
        raise fields.error(name, f"is {shown(pair)}; expected rows and columns of a block")
    return pair[0], pair[1]


def _bits(fields: Fields, name: str, *supported: int) -> int:
    bits = fields.integer(name, 1, 32)
    if bits not in supported:
        numbers = ", ".join(map(str, supported))
        raise fields.error(name, f"is {bits}; supported are {numbers}")
    return bits


def _group(fields: Fields) -> int:
    """Columns that share a scale; 0: all of them, which files call -1."""
    size = fields.integer("group_size", -1, LARGEST)
    if size == 0:
        raise fields.error("group_size", "is 0; expected -1 or a number of columns")
    return max(0, size)


METHODS: Mapping[str, Callable[[Fields], Method]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": lambda fields: Float4(32, first="blocks", scales="scales", blocks=True),
}
