"""A model that transformers knows, loaded by it: never with code of the model's own."""

import hashlib
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from kvrt.errors import ConfigError, KvrtError, ModelError
from kvrt.model.borrowed.attention import NAME
from kvrt.model.borrowed.trial import Found, try_out
from kvrt.model.checkpoint.header import read_header
from kvrt.model.checkpoint.shards import find_weights
from kvrt.model.config import read_token, read_tokens
from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.files.jsonfile import Fields, few, read_object, shown
from kvrt.model.spec import LayerSpec, ModelSpec
from kvrt.model.weights.resident import Resident
from kvrt.spi import ITEM_BYTES, DType

LENGTHENED = ("dynamic", "longrope", "su")
"""Rotations by which transformers rotates a token otherwise when its text has grown."""


class Stays(Resident):
    """Weights that do not leave memory while the model is open."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def check(self) -> None:
        raise ConfigError(
            "weights that transformers has loaded cannot leave memory",
            fix="sleep with level 1, which gives the memory of keys and values back",
        )


class BorrowedFolder:
    """A folder in the Hugging Face layout, of an architecture that transformers has.

    Raises:
        ModelError: it has not, or not without code from the folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ModelError(
                f"{path}: is no folder, and transformers reads models from folders",
                fix="give the model's folder in the Hugging Face layout",
            )
        self.path = path
        self.shape = path / "config.json"
        values = read_object(self.shape)
        fields = Fields(str(self.shape), values)
        kind = fields.text("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            own = "auto_map" in values
            raise fields.error(
                "model_type",
                f"is {shown(kind)}, of which transformers {transformers.__version__} has no model"
                " that writes text"
                + ("; code that its repository brings is never run" if own else ""),
                fix="look for a newer transformers",
            )
        if "quantization_config" in values:
            raise fields.error("quantization_config", "is not supported with transformers' modules")
        with _theirs(self.shape):
            self.config = AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            ).get_text_config(decoder=True)
        rope = getattr(self.config, "rope_parameters", None) or {}
        kinds = [each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)]
        for odd in {*kinds} & {*LENGTHENED}:
            raise fields.error(
                "rope_parameters.rope_type",
                f"is {shown(odd)}, by which transformers rotates a text's tokens otherwise when it"
                " has grown",
            )
        self._files = find_weights(path).paths
        self._headers = [read_header(file) for file in self._files]

    @property
    def dtype(self) -> DType:
        """Of the weights, as config.json has it."""
        kinds: dict[DType, DType] = {name: name for name in ITEM_BYTES}
        named = str(self.config.dtype).removeprefix("torch.")
        return next((kind for kind in kinds if kind == named), "float32")

    def nbytes(self, dtype: DType) -> int:
        """Memory that the weights take."""
        numbers = sum(
            math.prod(entry.shape) for header in self._headers for entry in header.tensors.values()
        )
        return numbers * ITEM_BYTES[dtype]

    def content(self) -> str:
        """A name for what is in the files, and for what computes with it."""
        digest = hashlib.sha256(f"transformers {transformers.__version__}".encode())
        for file in sorted(self._files):
            with file.open("rb") as opened:
                content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                digest.update(file.name.encode() + xxhash.xxh3_128(content).digest())
                content.close()
        digest.update(self.shape.read_bytes())
        return digest.hexdigest()

    def load(self, dtype: DType, device: str) -> tuple[Any, Found]:
        """The module, with its weights, and its attention.

        Raises:
            ModelError: weights are missing, or of other shapes; or the module does what pages do
                not serve.
        """
        with _quietly(), _theirs(self.path):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation=NAME,
                output_loading_info=True,
            )
        module, info = loaded
        for what in ("missing_keys", "mismatched_keys"):
            if left := sorted(map(str, info[what])):
                raise ModelError(
                    f"{self.path}: {what.removesuffix('_keys')} tensors: {few(left)}",
                    fix="check that config.json belongs to these weights",
                )
        module = module.eval().requires_grad_(False).to(device)
        with _theirs(self.path):
            return module, try_out(module, self.config.vocab_size, device)

    def spec(self, found: Found, widths: Sequence[int]) -> ModelSpec:
        """The shape of a module that has been tried, as far as pages and requests go by it.

        Args:
            widths: of heads that the device attends with; none: with any.
        """
        fields = Fields(str(self.shape), self.config.to_dict())
        positions = getattr(self.config, "max_position_embeddings", None)
        if not positions:
            raise fields.error("max_position_embeddings", "is missing")
        hidden = self.config.hidden_size
        return ModelSpec(
            architecture=(self.config.architectures or [self.config.model_type])[0],
            vocab=found.vocab,
            hidden=hidden,
            intermediate=getattr(self.config, "intermediate_size", None) or 4 * hidden,
            heads=found.heads,
            kv_heads=found.kv_heads,
            head_dim=min(
                (width for width in widths if width >= found.head_dim), default=found.head_dim
            ),
            layers=tuple(LayerSpec(window, rope=None) for window in found.windows),
            max_positions=min(positions, MAX_POSITIONS),
            norm_eps=0.0,
            activation="silu",
            ropes=(),
            tied=False,
            bos=read_token(fields, "bos_token_id", found.vocab),
            eos=read_tokens(fields, "eos_token_id", found.vocab),
            dtype=self.dtype,
        )


@contextmanager
def _theirs(path: Path) -> Iterator[None]:
    """Faults of transformers are faults of the model that it was given."""
    try:
        yield
    except KvrtError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(f"{path}: transformers cannot use it: {said[:300]}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own bars of progress."""
    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown_before:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
