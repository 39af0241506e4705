"""The peers' own virtual environments, at versions that were seen to work together.

kvrt and torch run in the Python that runs this. Packages come from wherever pip is set up to find
them.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench.peers.child import call

LLAMA_CPP = "llama-cpp-python==0.3.36"
PACKAGES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # pip's arguments, a line at a time.
    "llama.cpp": (("numpy==2.4.6",), (LLAMA_CPP,)),
    "openvino": (
        ("torch==2.13.0",),  # for the conversion; it must be there before others ask for any
        ("openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0",
         "transformers==5.5.4", "requests", "psutil", "setuptools"),
        # They ask for torchvision, which brings another torch and gigabytes for CUDA.
        ("--no-deps", "optimum-intel==2.2.0", "optimum==2.3.0"),
    ),
}  # fmt: skip
BUILD = {
    # Compiled for this processor; nothing but the library, and nothing fetched on the way.
    "CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF",
    "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
    # GCC before 13 thinks that nobody reads a configuration of AMX's tiles beyond its first 8
    # bytes, so it drops the stores of the rest, and the library ends by an illegal instruction.
    "CXXFLAGS": "-fno-tree-dse -fno-dse",
}


def python_of(peer: str, work: Path) -> Path:
    """The Python that has a peer, installed if it isn't yet: minutes.

    Raises:
        CalledProcessError: it can't be installed here; pip's words are in the log.
    """
    if peer not in PACKAGES:
        return Path(sys.executable)
    folder = work / peer
    python, whole = folder / "bin/python", folder / "installed"
    wanted = repr(PACKAGES[peer])
    if whole.exists() and whole.read_text() == wanted:
        return python
    log = work / f"{peer}.install.log"
    call([sys.executable, "-m", "venv", "--clear", folder], log)
    for line in PACKAGES[peer]:
        call([python, "-m", "pip", "install", *line], log, BUILD)
    whole.write_text(wanted)
    return python
