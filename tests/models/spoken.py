"""Spoken texts: said by eSpeak NG, which the package `espeakng-loader` carries."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from kvrt.speech.features import RATE
from kvrt.speech.resample import resampled
from tests.models.real import FOLDER, here

PACKAGE = FOLDER / "espeakng_loader"
SYNCHRONOUS, UTF8 = 2, 1


def spoken(text: str) -> NDArray[np.float32]:
    """The sound of a text, `RATE` samples a second."""
    library = ctypes.CDLL(str(here(PACKAGE / "libespeak-ng.so")))
    rate = library.espeak_Initialize(SYNCHRONOUS, 500, str(PACKAGE).encode(), 0)
    pieces: list[NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en")
    said = text.encode()
    library.espeak_Synth(said, len(said) + 1, 0, 0, 0, UTF8, None, None)
    library.espeak_Synchronize()
    return resampled(np.concatenate(pieces).astype(np.float32) / 2**15, rate, RATE)
