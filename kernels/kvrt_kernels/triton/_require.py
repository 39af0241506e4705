"""Whether Triton is there, in a version that these kernels were written for."""

import re
from importlib import import_module

from kvrt.errors import BackendUnavailable

OLDEST = (3, 6)
FIX = 'pip install "triton>=3.6", or a torch that comes with it'


def require_triton() -> None:
    """Import Triton.

    Raises:
        BackendUnavailable: it is not installed, cannot be imported, or is too old.
    """
    try:
        version = str(import_module("triton").__version__)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise BackendUnavailable(f"Triton cannot be imported: {error}", fix=FIX) from error
        raise BackendUnavailable("Triton is not installed", fix=FIX) from error
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"Triton cannot be imported: {error}", fix=FIX) from error
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise BackendUnavailable(f"Triton {version} is too old: 3.6 is the oldest", fix=FIX)
