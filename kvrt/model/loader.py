"""From a model's name to a model that is ready to run."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from kvrt.errors import CapacityError, ConfigError, RequestError
from kvrt.model.chat.messages import Message
from kvrt.model.chat.templates import Chat
from kvrt.model.checkpoint.slicing import own_slices
from kvrt.model.choice import check_shape, choose, choose_dtype, choose_length
from kvrt.model.decoder.activations import computed_in
from kvrt.model.decoder.decoder import Decoder
from kvrt.model.decoder.experts import notes_on_experts
from kvrt.model.decoder.predictor import PredictingDecoder
from kvrt.model.files.resolve import resolve
from kvrt.model.generation import GenerationDefaults, read_generation
from kvrt.model.offload.forms import check_offload
from kvrt.model.offload.pool import ExpertPool
from kvrt.model.packed.choice import kept_weights
from kvrt.model.packed.quantize import Quantize
from kvrt.model.progress import Progress
from kvrt.model.shard import WHOLE, Shard, Split
from kvrt.model.source import open_source
from kvrt.model.spec import ModelSpec
from kvrt.model.tokens.detokenizer import Detokenizer
from kvrt.model.tokens.tokenizer import TOKENIZER, Tokenizer, read_tokenizer
from kvrt.model.vision.vision import UNKNOWN, Vision, find_vision, load_vision, tower_bytes
from kvrt.model.weights import arena
from kvrt.model.weights.resident import Resident
from kvrt.model.weights.slices import packing_of
from kvrt.model.weights.weights import assemble, weight_bytes
from kvrt.spi import Device, DType

if TYPE_CHECKING:
    from kvrt.model.borrowed.decoder import BorrowedDecoder

LoadFormat = Literal["auto", "dummy"]
ModelImpl = Literal["kvrt", "transformers"]
CHAT_OPTIONS = ("tools", "template", "continue_final_message", "add_generation_prompt")


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model.

    Args:
        name: what was asked for.
        path: its folder, or its GGUF file.
        spec: its shape.
        dtype: of its matrices in memory.
        decoder: computes logits.
        tokenizer: None where it has none; then prompts are token ids.
        generation: what its author recommends for sampling.
        eos_ids: the tokens that end an answer.
        fingerprint: SHA-256 over its spec, as what its matrices are kept and multiplied, and all
            bytes of its weights.
        weight_bytes: memory its weights take.
        max_model_len: the longest prompt and output together, in tokens.
        resident: its weights' memory, which may go and come back.
        vision: what it sees images with, or why it sees none.
        notes: what a user may want to know of how it was loaded.
        pool: its experts, if they are brought as needed.
        shard: what of it is here, where several ranks compute it.
    """

    name: str
    path: Path
    spec: ModelSpec
    dtype: DType
    decoder: "Decoder | BorrowedDecoder"
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    eos_ids: frozenset[int]
    fingerprint: str
    weight_bytes: int
    max_model_len: int
    resident: Resident
    vision: Vision | str = UNKNOWN
    notes: tuple[str, ...] = ()
    pool: ExpertPool | None = None
    shard: Shard = WHOLE

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a prompt; not `special`: of what stands within a text.

        Raises `RequestError` if there is no tokenizer.
        """
        return self.need_tokenizer().encode(text, special=special)

    def encode_chat(self, messages: Sequence[Message] | Chat, **options: Any) -> list[int]:
        """The token ids of a conversation.

        Args:
            options: of `Chat`, if that is not what is given; others are its ``variables``.

        Raises:
            RequestError: there is no chat template, or it does not accept the messages.
        """
        if not isinstance(messages, Chat):
            own = {name: options.pop(name) for name in CHAT_OPTIONS if name in options}
            messages = Chat(messages, **own, variables=options)
        return self.need_tokenizer().encode_chat(messages)

    def detokenizer(
        self, prompt: Sequence[int] = (), *, skip_special: bool = True
    ) -> Detokenizer | None:
        """A detokenizer for an answer to `prompt`; None if there is no tokenizer."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.detokenizer(prompt, skip_special=skip_special)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `RequestError` if there is none."""
        if self.tokenizer is None:
            raise _no_tokenizer(self.path)
        return self.tokenizer


def _no_tokenizer(path: Path) -> RequestError:
    if not path.is_dir():
        return RequestError(
            f"{path.name} has no tokenizer in it, so it cannot take text",
            param="prompt",
            fix="give token ids, or take another file of the model",
        )
    slow = [name for name in ("tokenizer.model", "vocab.json") if (path / name).exists()]
    return RequestError(
        f"this model has no {TOKENIZER}"
        + (f", only {slow[0]} for other libraries" if slow else "")
        + ", so it cannot take text",
        param="prompt",
        fix="give token ids, or write that file once with transformers: python -c 'from"
        f' transformers import AutoTokenizer as T; T.from_pretrained("{path}")'
        f'.save_pretrained("{path}")\'',
    )


def _no_predictor(name: str) -> ConfigError:
    return ConfigError(
        f"speculate is mtp, and {name} has no layer that predicts further tokens",
        fix="speculate ngram, or give a draft_model",
    )


def load_model(
    model: str | Path,
    device: Device,
    *,
    dtype: DType | Literal["auto"] = "auto",
    load_format: LoadFormat = "auto",
    quantize: Quantize | None = None,
    quantized_dir: Path | None = None,
    model_impl: ModelImpl = "kvrt",
    offload_experts: int | None = None,
    max_model_len: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    seed: int = 0,
    head: bool = True,
    predictor: bool = False,
    max_images: int = 0,
    check_room: Callable[[ModelSpec, DType, int], None] = lambda *_: None,
    shard: Shard = WHOLE,
    join: Callable[[], Split] | None = None,
) -> Model:
    """Load a model onto a device.

    Everything that can be checked is checked before memory is taken.

    Args:
        model: a folder, a GGUF file, a hub id, or ``tiny``; see `resolve`.
        dtype: of the matrices; ``auto`` is the checkpoint's, or float32 if the device cannot use
            that for weights. With ``auto``, those that are codes stay so where the device
            multiplies them; otherwise they are unpacked.
        load_format: ``dummy`` needs only a config.json, and makes random weights.
        quantize: make the matrices into codes of so many bits, which the device multiplies.
        quantized_dir: where weights are kept once they are quantised; None: nowhere.
        model_impl: ``transformers`` runs transformers' own module over kvrt's pages, from a folder
            of floats; see `kvrt.model.borrowed`.
        offload_experts: bytes of memory for the experts of a mixture, which are brought to it from
            the files as needed; see `kvrt.model.offload`. None: all are in memory.
        max_model_len: the longest context that will be asked for; None is the model's own limit.
        revision: branch, tag or commit of a hub id.
        offline: download nothing.
        progress: told about the bytes of a download, and of files as they are quantised.
        seed: of dummy weights.
        head: False: without its output matrix, for `Decoder.states` alone.
        predictor: with the layer that predicts further tokens.
        max_images: of a prompt; 0: without its vision tower.
        check_room: raises if weights of so many bytes, of this shape and dtype, are too many.
        shard: what is loaded of it, by one of several ranks, each of which calls this.
        join: of a rank: meets the others, once all that can be is checked.

    Raises:
        ModelError: the model is missing, damaged or not supported.
        ConfigError: `dtype`, `quantize`, `offload_experts` or `max_model_len` cannot be used here,
            there is no predictor, or the model cannot be cut as `shard` says.
        CapacityError: its weights do not fit in the device's free memory.
    """
    dummy = load_format == "dummy"
    if offload_experts is not None:
        check_offload(dummy=dummy, quantize=quantize, model_impl=model_impl)
    place = resolve(
        model,
        want="config" if dummy else "foreign" if model_impl == "transformers" else "all",
        revision=revision,
        offline=offline,
        progress=progress,
    )
    if model_impl == "transformers":
        if join is not None:
            raise ConfigError(
                "a module of transformers cannot be cut into parts", fix="run it on one rank"
            )
        if predictor:
            raise _no_predictor(f"{model}, as transformers computes it,")
        if dummy or quantize is not None:
            raise ConfigError(
                f"model_impl transformers has no {'dummy weights' if dummy else 'quantize'}",
                fix="leave one of the two out",
            )
        return _borrow(str(model), place, device, dtype, max_model_len, check_room)
    source = open_source(place, head=head, predictor=predictor)
    if predictor and source.spec.predictor is None:
        raise _no_predictor(str(model))
    check_shape(source.shape, source.spec, device)
    checkpoint = None if dummy else source.checkpoint()
    choice = choose(
        source,
        checkpoint,
        device,
        dtype=dtype,
        quantize=quantize,
        max_model_len=max_model_len,
        offload_experts=offload_experts,
    )
    spec, chosen, packing = choice.spec, choice.dtype, choice.packing
    generation = source.generation(spec)
    tokenizer = source.tokenizer(spec)
    needed = choice.weight_bytes
    described = packing.description  # the same on all ranks
    shard.check(spec)
    split = None if join is None else join()
    if split is not None:
        if checkpoint is not None:
            checkpoint = own_slices(checkpoint, spec, shard, packing)
        packing = packing_of(spec, shard, packing)
        needed = weight_bytes(spec, chosen, packing)
        max_images, quantized_dir = 0, None
    eyes = find_vision(source.path, spec, 0 if dummy else max_images)
    tower = tower_bytes(source.path, eyes, chosen)
    check_room(spec, chosen, needed + tower)
    memory = _allocate(str(model), needed, chosen, device)
    kept = None
    if checkpoint and quantize and quantized_dir is not None and packing.formats:
        kept = kept_weights(quantized_dir, spec, chosen, packing, device)
    pool = None
    if choice.forms:
        apart = memory[weight_bytes(spec, chosen, packing) :]
        pool = ExpertPool(spec, choice.forms, apart)
    resident = Resident(
        memory, spec, chosen, packing, checkpoint, seed=seed, quantize=quantize, kept=kept,
        pool=pool, split=split,
    )  # fmt: skip
    stored, notes = resident.read(progress)
    elsewhere = () if pool is None else pool.views()
    weights = assemble(shard.local(spec), chosen, memory, packing, elsewhere)
    notes += notes_on_experts(spec, device)
    if pool is not None:
        pool.biases_of(weights)
        notes.append(pool.note)
    vision = load_vision(source.path, eyes, device, chosen, max_images)
    if isinstance(vision, str) and vision != UNKNOWN and max_images:
        notes.append(f"it {vision}")
    make = Decoder if spec.predictor is None else PredictingDecoder
    return Model(
        name=str(model),
        path=source.path,
        spec=spec,
        dtype=chosen,
        decoder=make(spec, weights, device, chosen, choice.positions, pool=pool, split=split),
        tokenizer=tokenizer,
        generation=generation,
        eos_ids=_eos_ids(generation, tokenizer, spec.vocab),
        fingerprint=hashlib.sha256(
            f"{spec} {chosen} {stored} {described}{_cut(shard)}".encode()
        ).hexdigest(),
        weight_bytes=weights.nbytes + tower,
        max_model_len=choice.positions,
        resident=resident,
        vision=vision,
        notes=tuple(notes),
        pool=pool,
        shard=shard,
    )


def _cut(shard: Shard) -> str:
    """What pages of several ranks differ by from those of one, and all ranks agree on."""
    if shard == WHOLE:
        return ""
    return f" {shard.parts} x {shard.stages}" + ("" if shard.exact else ", added up")


def _borrow(
    name: str,
    place: Path,
    device: Device,
    dtype: DType | Literal["auto"],
    max_model_len: int | None,
    check_room: Callable[[ModelSpec, DType, int], None],
) -> Model:
    """A model of transformers' own module; see `load_model`."""
    if find_spec("transformers") is None:
        raise ConfigError(
            "model_impl transformers needs transformers, which is not installed",
            fix="pip install 'kvrt[transformers]'",
        )
    from kvrt.model.borrowed.decoder import BorrowedDecoder
    from kvrt.model.borrowed.source import BorrowedFolder, Stays

    source = BorrowedFolder(place)
    chosen = computed_in(choose_dtype(dtype, source.dtype, device), device.info)
    needed = source.nbytes(chosen)
    _check_free(name, needed, chosen, device)
    module, found = source.load(chosen, device.info.torch_device)
    spec = source.spec(found, device.info.head_dims)
    check_shape(source.shape, spec, device)
    check_room(spec, chosen, needed)
    positions = choose_length(max_model_len, spec)
    generation = read_generation(place, spec)
    there = (place / TOKENIZER).exists()
    tokenizer = read_tokenizer(place, spec.vocab) if there else None
    return Model(
        name=name,
        path=place,
        spec=spec,
        dtype=chosen,
        decoder=BorrowedDecoder(spec, module, found, device, chosen, positions),
        tokenizer=tokenizer,
        generation=generation,
        eos_ids=_eos_ids(generation, tokenizer, spec.vocab),
        fingerprint=hashlib.sha256(f"{spec} {chosen} {source.content()}".encode()).hexdigest(),
        weight_bytes=needed,
        max_model_len=positions,
        resident=Stays(),
        notes=(
            f"transformers' {type(module).__name__} computes it over kvrt's pages: slower than an"
            " architecture that kvrt has, and its last bits may depend on what else runs",
        ),
    )


def _allocate(name: str, needed: int, dtype: DType, device: Device) -> Tensor:
    _check_free(name, needed, dtype, device)
    return arena.allocate(needed, device.info.torch_device)


def _check_free(name: str, needed: int, dtype: DType, device: Device) -> None:
    free = device.memory.info().free
    if needed > free:
        raise CapacityError(
            f"the weights of {name} take {needed:,} bytes in {dtype}, but {device.info.name} has"
            f" only {free:,} bytes free",
            needed=needed,
            free=free,
            fix="free memory, or load a smaller model"
            + (" or --dtype bfloat16" if dtype == "float32" else ""),
        )


def _eos_ids(
    generation: GenerationDefaults, tokenizer: Tokenizer | None, vocab: int
) -> frozenset[int]:
    """Chat models often name the end of a turn in one of the files only, so all are taken."""
    ids = set(generation.eos)
    if tokenizer is not None:
        ids |= tokenizer.ends
    return frozenset(id for id in ids if id < vocab)
