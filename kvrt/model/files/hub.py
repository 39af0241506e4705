"""Downloads from the Hugging Face hub, into its own cache, through `huggingface_hub`.

That library goes on with a file whose connection was lost, keeps complete files for the next run,
puts only complete ones into a snapshot, and honours the HF_* variables (HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT ...). What is added here:

- The small files come first, so that a model kvrt cannot run is refused before its weights are
  downloaded, and a snapshot that has its weights has everything else too.
- New weights are compared with the SHA-256 that the hub announced.
- Of a repository of GGUF files, the one that is meant is chosen by its name.
- What is in the cache serves within seconds where the hub does not answer. The library would ask
  for the list of a snapshot's files again and again, for half a minute, and say so each time.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, snapshot_download
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from kvrt.errors import ModelError
from kvrt.model.checkpoint.shards import INDEX, SINGLE, find_weights, read_index
from kvrt.model.config import is_decoder, read_config
from kvrt.model.encoder.spec import read_encoder
from kvrt.model.files.foreign import told_by_neighbours
from kvrt.model.files.hubheader import fetch_header
from kvrt.model.files.jsonfile import read_list
from kvrt.model.gguf.choice import choose
from kvrt.model.progress import Progress
from kvrt.model.speech.spec import read_speech

CONFIG = "config.json"
SMALL_FILES = ["*.json", "*.jinja"]
IN_SUBFOLDERS = ["*/*.json"]
"""Not wanted: the same model in other formats. What else is small there are chat templates."""
POOLING = "1_Pooling/config.json"
DENSE = ("config.json", "model.safetensors")
"""What stands around encoders: how tokens' states become a vector, and what is made of that."""
ANSWER_SECONDS = 5.0
"""For the hub to answer, where the cache could serve as well."""

SHA256 = re.compile(r"[0-9a-f]{64}")


def download(
    repository: str,
    *,
    weights: bool,
    encoder: bool,
    speech: bool = False,
    known: bool = True,
    quantization: str | None,
    revision: str | None,
    offline: bool,
    progress: Progress | None,
    headers: Path | None = None,
) -> Path:
    """The snapshot of a repository, completed if need be; `weights`: with them. `encoder`: it is
    one, and what stands around it is wanted as well; `speech`: it writes what is said; not `known`:
    its architecture may be any. `headers`: a folder for those of GGUF files, which are wanted
    without what is behind them.

    Where a `quantization` is named, or there are no safetensors, it is a GGUF file in the snapshot.
    See `kvrt.model.files.resolve.resolve`.
    """
    cut_off = (
        not offline and _is_cached(repository, revision) and not _answers(repository, revision)
    )
    local = offline or cut_off
    first = _snapshot(repository, SMALL_FILES, revision, local, progress, offline)
    if quantization is None and (first / CONFIG).exists():
        if encoder:
            config = first / CONFIG
            read_config(config, head=False) if is_decoder(config) else read_encoder(config)
            _fetch(repository, _around(first), first, local, progress, offline)
        elif speech:
            read_speech(first / CONFIG)
        elif known:
            read_config(first / CONFIG)
        if not weights:
            return first
        index = first / INDEX
        wanted = sorted(set(read_index(index).values())) if index.exists() else [SINGLE]
        new = _fetch(repository, wanted, first, local, progress, offline)
        if index.exists() or (first / SINGLE).exists() or not _gguf_names(repository, first, local):
            _check(repository, first, new, offline)
            return first
    names = _gguf_names(repository, first, local)
    if not names and quantization is None:
        raise told_by_neighbours(first) or ModelError(
            f"{repository}: the repository has no config.json and no GGUF file",
            fix="look for a repository with safetensors or GGUF files",
        )
    wanted = choose(repository, names, quantization)
    if headers and not local and not all((first / name).exists() for name in wanted):
        with _told(repository, first.name, offline):
            fetched = [fetch_header(repository, name, first.name, headers) for name in wanted]
        return fetched[0]
    for name in _fetch(repository, wanted, first, local, progress, offline):
        _verify(first / name)
    return first / wanted[0]


def _around(snapshot: Path) -> list[str]:
    """The files of what is done with an encoder's states."""
    found = [POOLING]
    if (path := snapshot / "modules.json").exists():
        for fields in read_list(path):
            name = fields.text("path", "")
            if fields.text("type").endswith(".Dense") and Path(name).name == name:
                found += [f"{name}/{file}" for file in DENSE]
    return found


def _fetch(
    repository: str,
    wanted: Sequence[str],
    snapshot: Path,
    local: bool,
    progress: Progress | None,
    offline: bool,
) -> list[str]:
    """Download those of some files that a snapshot lacks; returns which those are."""
    new = [name for name in wanted if not (snapshot / name).exists()]
    if new:
        # The folder of a snapshot is named for its commit: the weights come from the same one, even
        # if the branch has moved meanwhile.
        _snapshot(repository, new, snapshot.name, local, progress, offline)
    return new


def _check(repository: str, snapshot: Path, new: Sequence[str], offline: bool) -> None:
    """Refuse a snapshot whose weights are not complete, or are not what the hub announced."""
    try:
        for path in find_weights(snapshot).paths:
            if path.name in new:
                _verify(path)
    except ModelError as error:
        raise ModelError(f"{repository}: {error}", fix=_completing(error.fix, offline)) from None


def _gguf_names(repository: str, snapshot: Path, local: bool) -> Sequence[str]:
    """The GGUF files of a repository; `local`: those that are in the cache."""
    if local:
        return [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")]
    with _told(repository, snapshot.name, offline=False):
        entries = HfApi().list_repo_tree(repository, recursive=True, revision=snapshot.name)
        return [entry.path for entry in entries if entry.path.endswith(".gguf")]


def _is_cached(repository: str, revision: str | None) -> bool:
    """Whether a snapshot is in the cache, though perhaps not all of it."""
    try:
        snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG], local_files_only=True
        )
    except Exception:  # it is not, or the name is none; the download itself will say which
        return False
    return True


def _answers(repository: str, revision: str | None) -> bool:
    """Whether the hub says something about a repository, within seconds."""
    try:
        HfApi().repo_info(repository, revision=revision, timeout=ANSWER_SECONDS)
    except errors.HfHubHTTPError as error:
        # That it is overloaded says nothing. All else comes up again when it is asked for files.
        return error.response.status_code < 429
    except Exception:  # no network, no such host, no answer in time
        return False
    return True


def _verify(path: Path) -> None:
    """Compare a new file with the SHA-256 that the hub announced, which is its name in the cache.

    The library itself compares lengths, and those only with what the same server said.
    """
    blob = path.resolve()
    if not SHA256.fullmatch(blob.name):
        return
    with open(blob, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ModelError(
            f"{path.name}: what arrived has another SHA-256 than the hub announced; it was deleted",
            fix="run it again, to download the file again",
        )


def _completing(fix: str, offline: bool) -> str:
    return "run it once without --offline, to complete the download" if offline else fix


def _snapshot(
    repository: str,
    patterns: list[str],
    revision: str | None,
    local: bool,
    progress: Progress | None,
    offline: bool,
) -> Path:
    """The folder of some files at a revision; `local`: as the cache has them."""
    with _told(repository, revision, offline):
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=IN_SUBFOLDERS if patterns == SMALL_FILES else None,
                local_files_only=local,
                tqdm_class=_reporting(progress),
            )
        )


@contextmanager
def _told(repository: str, revision: str | None, offline: bool) -> Iterator[None]:
    """What the library raises, told as kvrt tells of a model."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository}: access to this repository must be granted to you",
            fix=f"accept its terms at https://huggingface.co/{repository} and set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository}: has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repository}: there is no folder and no hub repository of this name",
            fix="check the spelling; for a private repository set HF_TOKEN",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository}: is not completely in the cache, and "
            + ("--offline forbids a download" if offline else "the hub cannot be reached"),
            fix="check the network and run it once without --offline, or give a folder",
        ) from error
    except ModelError:
        raise
    except Exception as error:  # the network, the disk, the server, a name: all end here alike
        raise ModelError(
            f"{repository}: the download failed: {_one_line(error)}",
            fix="run it again: the files that are complete are kept",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _reporting(progress: Progress | None) -> type[tqdm]:
    """A progress bar for `snapshot_download` that draws nothing and tells `progress` instead."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The library has further bars, which count files and the bytes on the wire.
            self._counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0  # which a disabled bar leaves to its owner
            if progress is not None and self._counts_bytes and self.total:
                progress(int(self.n), int(self.total))
            return None

    return Bar
