"""Options of a runtime and of the process, each read and checked in one place."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from kvrt.checks import (
    Checks,
    Flag,
    Folder,
    Maybe,
    Number,
    Of,
    OneOf,
    Size,
    Text,
    Whole,
    check_options,
)
from kvrt.errors import ConfigError
from kvrt.kv.index.cost import Preemption
from kvrt.kv.index.eviction import EvictionName
from kvrt.kv.tiers.config import parse_tiers
from kvrt.kv.tiers.remote.key import store_key
from kvrt.net.address import parse_address
from kvrt.sampling import MAX_DRAFTS
from kvrt.sched.policy import PolicyName
from kvrt.sharing.share import Share
from kvrt.spi import DType, KVFormat
from kvrt.units import MIB

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class Environment:
    """The process's environment variables that kvrt honours; empty is the same as not set.

    Each is checked when it is asked for, so that none stops a program that does not use it:
    `ConfigError` for a value that is not allowed names those that are.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def debug(self) -> bool:
        """KVRT_DEBUG: errors on the command line show their traceback."""
        value = self.environ.get("KVRT_DEBUG") or "0"
        if value not in ("0", "1"):
            raise ConfigError(f"KVRT_DEBUG is {value!r}", fix="use 0 or 1")
        return value == "1"

    @property
    def log_level(self) -> str:
        """KVRT_LOG_LEVEL: what the command line logs to stderr."""
        value = (self.environ.get("KVRT_LOG_LEVEL") or "WARNING").upper()
        if value not in LOG_LEVELS:
            fix = f"use one of {', '.join(LOG_LEVELS)}"
            raise ConfigError(f"KVRT_LOG_LEVEL is {value!r}", fix=fix)
        return value

    @property
    def log_format(self) -> str:
        """KVRT_LOG_FORMAT: how the command line logs."""
        value = self.environ.get("KVRT_LOG_FORMAT") or "text"
        if value not in LOG_FORMATS:
            fix = f"use one of {', '.join(LOG_FORMATS)}"
            raise ConfigError(f"KVRT_LOG_FORMAT is {value!r}", fix=fix)
        return value

    @property
    def backend(self) -> str:
        """KVRT_BACKEND: the backend meant by "auto"."""
        return self.environ.get("KVRT_BACKEND") or "auto"

    def backend_for(self, name: str) -> str:
        """The backend that an option names, which may be "auto"."""
        return self.backend if name == "auto" else name


LoadFormat = Literal["auto", "dummy"]
ModelImpl = Literal["kvrt", "transformers"]
Quantize = Literal["int8", "int5", "int4"]
DTypeOption = Literal["auto", DType]
FitFormat = Literal["bfloat16", "int8", "int4"]
MAX_THREADS = max(64, 8 * (os.cpu_count() or 1))
"""More than a processor has any use for; each takes memory of the system's."""
ParallelMode = Literal["exact", "fast"]
"""What several ranks, with a part of every layer each, do with sums: docs/parallel.md."""

MAX_RANKS = 64
"""In each direction; more would have less than a layer, or a head, of any model there is."""
DRAFTS = 10
"""Tokens guessed in a step where speculation is on and no number is given."""
MODEL_DRAFTS = 8
"""Likewise by a model; fewer, where that is worth more."""
PREDICTED = 4
"""Likewise by a layer that predicts, which was made to predict one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How a `kvrt.Runtime` is set up. Checked when made: a bad value is a `ConfigError`.

    Args:
        model: a directory, a GGUF file, a hub id, or ``tiny``, the bundled model.
        backend: a backend's name, or ``auto``: KVRT_BACKEND, else the first accelerator that
            works, else the CPU.
        device: which of the backend's devices.
        dtype: of the weights; ``auto``: the checkpoint's.
        kv_cache_dtype: of keys and values in the cache; ``auto``: that of the weights. ``int8``,
            ``int4`` and, on GPUs that have it, ``fp8`` hold two to eight times as many tokens, at
            some loss of quality: docs/kv-formats.md. ``fit``: the most exact, from that of the
            weights to ``int8``, in which a text of `max_model_len` fits; ``fit:N``: N of them;
            ``fit:N:int4``: down to that.
        load_format: ``dummy`` makes random weights from config.json alone.
        model_impl: ``transformers``: transformers' own module computes, over kvrt's pages; for
            architectures that kvrt does not have (docs/models.md). Slower, and with no code from
            the model's repository.
        quantize: ``int8``, ``int5`` and ``int4`` make the matrices into codes of so many bits, with
            a scale for each 32, as they are loaded; needs a device that multiplies these
            (docs/quantised.md). None: they stay what they are in the checkpoint.
        quantized_dir: a folder in which weights are kept once they are quantised, so that the next
            start reads them; ``auto``: kvrt/weights in the user's folder of caches. None: they are
            quantised anew at each start.
        offload_experts: memory for the experts of a mixture: bytes, or a string such as ``2GiB`` or
            ``25%`` (of the device's memory). As many as have room are in it, those that were used
            most of late, and others are read from the model's files when a token chooses them: the
            same text, slower. None: all experts are in memory.
        activations: what weights that are codes are multiplied with: ``int8``, activations as codes
            of 8 bits, with a scale for each 32; or ``exact``, as they are, where the device has
            such products, and otherwise such weights are unpacked.
        max_model_len: longest prompt and output together, in tokens; None: the model's own.
        memory_limit: weights and KV cache together may take so much: bytes, or a string such as
            ``4GiB`` or ``50%`` (of the device's memory). None: the weights, and for the cache what
            the largest load can need, but at most 60 % of what is free after loading, and never
            the memory that the largest step computes in.
        page_size: tokens in a page.
        keep_warm: bytes of KV memory kept when idle.
        max_batch_tokens: tokens computed in one step, over all sequences.
        max_running: sequences computed together.
        policy: ``fcfs`` or ``priority``.
        prefix_cache: keep the pages of ended requests for others that begin with the same tokens.
        prefix_cache_policy: which of them go first when memory is needed: ``lru``, ``lfu``, or
            ``cost`` (what is worth least, by reuse and by what it takes to compute).
        prefix_cache_ttl: while nothing runs, memory of pages that were not used for so many
            seconds is given back.
        offload: where evicted pages go, as ``host:8GiB,disk:PATH:64GiB`` (either part may be left
            out); None: they are lost, and computed again if they are needed.
        offload_write: ``back`` moves a page when its memory is needed, ``through`` when its
            request ends.
        remote_store: a store of KV pages that several machines share, as ``HOST:PORT``
            (docs/shared-pages.md): pages go there as soon as they are computed, and those that
            others have computed come from there. None: there is none.
        remote_key: a file with the key that all who share pages have. None: there is no key, which
            is for a store on this machine alone.
        cache_dir: a folder in which KV pages outlive the process: what is there is used, and what
            is cached at the end is added.
        preemption: what becomes of the pages of a request that has to stop for others: ``auto``
            moves them if that is cheaper than to compute them again, as measured while running;
            ``move`` and ``recompute`` decide it. By ``move``, every page that a tier has is
            fetched, whoever asks for it.
        speculate: ``ngram``, or ``ngram:K``: guess up to K tokens a step (10) from what the text
            has said before, and verify them together. ``mtp``, or ``mtp:K``: up to K (4) by
            the layer that models such as DeepSeek V3 have for it. The text stays the same. None:
            only for requests that ask for it.
        draft_model: a smaller model with the same tokenizer, which guesses tokens in place of the
            text: a folder, a GGUF file or a hub id. It has its own KV pages within the memory
            limit. The text stays the same; how many tokens it guesses follows from what is gained,
            at most ``speculate`` (``draft:K``; 8). None: there is none.
        max_images: of a prompt, for models that see; 0: their vision tower is not loaded.
        threads: host threads for kernels; None: the backend's choice.
        share: share the device's memory with other processes: a `kvrt.Share`, or the
            name of one, as ``gpu0``. Weights and KV memory are leased before they are taken, and
            memory that others need more is given back. None: what is free is taken.
        tensor_parallel: so many processes, each with a device, have a part of every layer each.
        tensor_parallel_mode: ``exact``: the text of one process, byte for byte. ``fast``: they say
            each other less, and add up in another order, which changes last bits: so a token may be
            another one where two are all but equally likely.
        pipeline_parallel: so many stages, one after the other, have some of the layers each; of
            as many processes each as `tensor_parallel` says: docs/parallel.md. `memory_limit`,
            `keep_warm` and `threads` are of each process.
        nodes: so many machines have as many of these processes each; this is the first of them.
            The others are started with ``--node-rank``.
        master: the address of the first machine, by which the others reach it: ``HOST`` or
            ``HOST:PORT``.
        master_key: a file with the key that all machines have. None: there is no key, which is for
            machines that are one.
        rank_timeout: seconds that one of these processes may keep the others waiting in a step.
        offline: use only what is on this machine.
        revision: of a hub id.
        seed: for dummy weights, and for requests that bring none; None: requests are random.
        debug: for tests: overwrite each freed page, so that a stale read shows, and check the
            device calls of every layer.
    """

    model: str | Path = "tiny"
    backend: str = "auto"
    device: int = 0
    dtype: DTypeOption = "auto"
    kv_cache_dtype: str = "auto"
    load_format: LoadFormat = "auto"
    model_impl: ModelImpl = "kvrt"
    quantize: Quantize | None = None
    quantized_dir: str | Path | None = "auto"
    offload_experts: int | str | None = None
    activations: Literal["int8", "exact"] = "int8"
    max_model_len: int | None = None
    memory_limit: int | str | None = None
    page_size: int = 16
    keep_warm: int = 8 * MIB
    max_batch_tokens: int = 512
    max_running: int = 256
    policy: PolicyName = "fcfs"
    prefix_cache: bool = True
    prefix_cache_policy: EvictionName = "lru"
    prefix_cache_ttl: float = 300.0
    offload: str | None = None
    offload_write: Literal["back", "through"] = "back"
    remote_store: str | None = None
    remote_key: str | Path | None = None
    cache_dir: str | Path | None = None
    preemption: Preemption = "auto"
    speculate: str | None = None
    draft_model: str | Path | None = None
    max_images: int = 8
    threads: int | None = None
    share: Share | str | None = None
    tensor_parallel: int = 1
    tensor_parallel_mode: ParallelMode = "exact"
    pipeline_parallel: int = 1
    nodes: int = 1
    master: str | None = None
    master_key: str | Path | None = None
    rank_timeout: float = 120.0
    offline: bool = False
    revision: str | None = None
    seed: int | None = None
    debug: bool = False

    @property
    def predicts(self) -> bool:
        """Whether the model's own layer guesses tokens."""
        return self.speculate is not None and self.speculate.partition(":")[0] == "mtp"

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in OPTIONS}
        for name, value in check_options(OPTIONS, **given).items():
            object.__setattr__(self, name, value)
        if isinstance(self.share, str):
            object.__setattr__(self, "share", Share(name=self.share))
        if self.offload is not None:
            parse_tiers(self.offload)
        if self.remote_store is not None:
            address = parse_address(self.remote_store)
            if self.remote_key is None:
                store_key(None, address)
        elif self.remote_key is not None:
            raise ConfigError(
                "remote_key is of a store, and there is none", fix="name it in remote_store"
            )
        lasting = (self.offload, self.remote_store, self.cache_dir)
        if not self.prefix_cache and any(each is not None for each in lasting):
            raise ConfigError(
                "offload, remote_store and cache_dir find pages by their tokens, and prefix_cache"
                " is off",
                fix="leave prefix_cache on",
            )
        draft_limit(self.speculate, by_model=self.draft_model is not None)
        fit = fit_of(self.kv_cache_dtype)
        if fit is not None and fit.texts > self.max_running:
            raise ConfigError(
                f"kv_cache_dtype {self.kv_cache_dtype} is for {fit.texts} texts at once, and"
                f" max_running is {self.max_running}",
                fix="raise max_running, or ask for no more texts than run together",
            )
        if self.tensor_parallel == 1 and self.tensor_parallel_mode != "exact":
            raise ConfigError(
                f"tensor_parallel_mode is {self.tensor_parallel_mode}, and tensor_parallel is 1",
                fix="leave out tensor_parallel_mode, or let several ranks have a part of every"
                " layer each",
            )
        ranks = self.tensor_parallel * self.pipeline_parallel
        if ranks % self.nodes or (self.nodes > 1) != (self.master is not None):
            raise ConfigError(
                f"nodes is {self.nodes}, master is {self.master!r}, and there are {ranks} ranks",
                fix="let tensor_parallel times pipeline_parallel be a multiple of nodes, and name"
                " the first machine's address in master if there are several",
            )
        if ranks > 1:
            alone = [name for name in ALONE if getattr(self, name) is not None]
            alone += ["speculate mtp"] if self.predicts else []
            alone += ["kv_cache_dtype fit"] if fit is not None else []
            for name in alone:
                raise ConfigError(
                    f"{name} is not for a model that several processes compute",
                    fix=f"leave out {name}, or tensor_parallel and pipeline_parallel",
                )


def weights_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where quantised weights are kept where nothing else is asked for."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvrt" / "weights"


ALONE = "share", "draft_model", "offload_experts"
"""Options of a model that one process computes."""


OPTIONS: Checks = {
    "model": Of((str, Path)),
    "backend": Text(),
    "device": Whole(0, 2**31 - 1),
    "dtype": OneOf(("auto", *get_args(DType))),
    "kv_cache_dtype": Text(),
    "load_format": OneOf(get_args(LoadFormat)),
    "model_impl": OneOf(get_args(ModelImpl)),
    "quantize": Maybe(OneOf(get_args(Quantize))),
    "quantized_dir": Maybe(Folder()),
    "offload_experts": Maybe(Size()),
    "activations": OneOf(("int8", "exact")),
    "max_model_len": Maybe(Whole(2, 2**31 - 1)),
    "memory_limit": Maybe(Size()),
    "page_size": Whole(1, 1024),
    "keep_warm": Whole(0, 2**62),
    "max_batch_tokens": Whole(1, 2**31 - 1),
    "max_running": Whole(1, 2**31 - 1),
    "policy": OneOf(get_args(PolicyName)),
    "prefix_cache": Flag(),
    "prefix_cache_policy": OneOf(get_args(EvictionName)),
    "prefix_cache_ttl": Number(0, math.inf),
    "offload": Maybe(Text()),
    "offload_write": OneOf(("back", "through")),
    "remote_store": Maybe(Text()),
    "remote_key": Maybe(Folder()),
    "cache_dir": Maybe(Folder()),
    "preemption": OneOf(get_args(Preemption)),
    "speculate": Maybe(Text()),
    "draft_model": Maybe(Of((str, Path))),
    "max_images": Whole(0, 1024),
    "threads": Maybe(Whole(1, MAX_THREADS)),
    "share": Maybe(Of((Share, str))),
    "tensor_parallel": Whole(1, MAX_RANKS),
    "tensor_parallel_mode": OneOf(get_args(ParallelMode)),
    "pipeline_parallel": Whole(1, MAX_RANKS),
    "nodes": Whole(1, MAX_RANKS),
    "master": Maybe(Text()),
    "master_key": Maybe(Folder()),
    "rank_timeout": Number(0.1, 86400.0),
    "offline": Flag(),
    "revision": Maybe(Text()),
    "seed": Maybe(Whole(0, 2**64 - 1)),
    "debug": Flag(),
}
"""Of each field, what it may be."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What KV pages are to hold, whichever format that takes.

    Args:
        texts: of the longest context, at once.
        least: the least exact format that may be taken for it.
    """

    texts: int = 1
    least: FitFormat = "int8"


def fit_of(kv_cache_dtype: str) -> Fit | None:
    """What ``fit[:N][:FORMAT]`` asks for; None: another format is named, or ``auto``.

    Raises:
        ConfigError: it is none of these.
    """
    word, *parts = kv_cache_dtype.split(":")
    if word != "fit" and kv_cache_dtype in ("auto", *get_args(KVFormat)):
        return None
    count = parts.pop(0) if parts and parts[0].isascii() and parts[0].isdigit() else "1"
    least = parts.pop(0) if parts else "int8"
    if word != "fit" or parts or least not in get_args(FitFormat) or int(count[:9]) < 1:
        raise ConfigError(
            f"kv_cache_dtype is {kv_cache_dtype!r:.60}",
            fix=f"use one of auto, {', '.join(get_args(KVFormat))}, or fit, fit:N, fit:FORMAT or"
            f" fit:N:FORMAT with N texts and one of {', '.join(get_args(FitFormat))}",
        )
    return Fit(int(count[:9]), cast(FitFormat, least))


def draft_limit(speculate: str | None, *, by_model: bool = False) -> int:
    """Tokens that may be guessed in a step, by ``ngram[:K]`` or ``mtp[:K]``, or with a model
    ``draft[:K]``; None: none, or as many as usual with a model.

    Raises:
        ConfigError: it is none of these, or K is not from 1 to `kvrt.sampling.MAX_DRAFTS`.
    """
    known = {"draft": MODEL_DRAFTS} if by_model else {"ngram": DRAFTS, "mtp": PREDICTED}
    if speculate is None:
        return MODEL_DRAFTS if by_model else 0
    method, colon, count = str(speculate).partition(":")
    number = int(count) if count.isascii() and count.isdigit() else known.get(method, 0)
    if method not in known or bool(colon) != count.isdigit() or not 1 <= number <= MAX_DRAFTS:
        why = ", and draft_model guesses" if by_model else ""
        raise ConfigError(
            f"speculate is {speculate!r}{why}",
            fix=f"use {' or '.join(known)}, or {' or '.join(f'{name}:K' for name in known)} with K"
            f" from 1 to {MAX_DRAFTS}" + ("" if by_model else "; draft is of a draft_model"),
        )
    return number
