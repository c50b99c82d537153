"""Speech from the espeak-ng library, the same samples for the same arguments every time.

espeak-ng keeps hidden state between calls (wave phase, flutter, two random generators), so the same
text gives other samples depending on what was said before. What works is a fresh copy of the
library for every call, seeded before and after the choice of the voice, and closed again.

The library is GPL-3.0 and an optional extra; only the worker processes of the corpus load it.
"""

import _ctypes
import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soxr

from espnet_bestow.corpus.rendering import SAMPLE_RATE, Delivery, Speech, timed_words

# By their files: for a name the library first reads all of its voices, a quarter of the time that a sentence takes.
_VOICE_OF_LANGUAGE = {"en": "gmw/en-US", "de": "gmw/de"}
_SYNCHRONOUS, _POSITION_CHARACTER, _UTF8 = 2, 1, 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_EVENT_LIST_END, _EVENT_WORD, _EVENT_END = 0, 1, 5
_TEXT_INDEX_START = 1


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class MissingEspeakError(RuntimeError):
    """The optional espeak-ng wheel is not installed."""


def require_espeak() -> None:
    """Fail with the line to type when the espeak-ng wheel is missing; does not load it."""
    if find_spec("espeakng_loader") is None:
        raise MissingEspeakError(
            "the espeak renderer needs espeak-ng: pip install 'espnet_bestow[corpus]' (or use --renderer tone)"
        )


class _Recorder:
    """Collects what the library hands to its callback."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.onset_samples: dict[int, int] = {}
        self.end_sample = 0

    def __call__(self, wave, count, events) -> int:  # type: ignore[no-untyped-def]
        if wave and count > 0:
            self.blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_END:
            event = events[index]
            if event.type == _EVENT_WORD:
                self.onset_samples[event.text_position - _TEXT_INDEX_START] = event.sample
            elif event.type == _EVENT_END:
                self.end_sample = event.sample
            index += 1
        return 0


def _voice_name(delivery: Delivery, data_path: Path) -> str:
    """Return the library's name for the voice, known to exist."""
    if delivery.language not in _VOICE_OF_LANGUAGE:
        raise ValueError(f"language {delivery.language!r} is not one of {sorted(_VOICE_OF_LANGUAGE)}")
    base = _VOICE_OF_LANGUAGE[delivery.language]
    if not delivery.variant:
        return base
    # The library takes its plain voice for a variant that it does not know, without a word.
    if not (data_path / "voices" / "!v" / delivery.variant).is_file():
        raise ValueError(f"espeak-ng has no voice variant {delivery.variant!r}")
    return f"{base}+{delivery.variant}"


def _prepare(library: ctypes.CDLL, voice: str, delivery: Delivery, seed: int) -> None:
    # Choosing a voice draws random numbers of its own, hence the seed before and after.
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng does not know the voice {voice!r}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    for parameter, value in (
        (_RATE, delivery.rate),
        (_PITCH, delivery.pitch),
        (_PITCH_RANGE, delivery.pitch_range),
    ):
        if library.espeak_SetParameter(parameter, value, 0) != 0:
            raise ValueError(f"espeak-ng refuses {value} in {delivery}")
    ctypes.CDLL(None).srand(ctypes.c_uint(seed))


def _synthesise(text: str, delivery: Delivery, seed: int) -> tuple[_Recorder, int]:
    import espeakng_loader

    data_path = Path(espeakng_loader.get_data_path())
    voice = _voice_name(delivery, data_path)
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    recorder = _Recorder()
    callback = _Callback(recorder)
    try:
        # Otherwise a thread of the library speaks, and sleeps 15 ms before it says that it has done so.
        native_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data_path).encode(), 0)
        if native_rate <= 0:
            raise RuntimeError(f"espeak-ng does not start (status {native_rate})")
        library.espeak_SetSynthCallback(callback)
        _prepare(library, voice, delivery, seed)
        utf8 = text.encode()
        library.espeak_Synth(utf8, len(utf8) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
    return recorder, native_rate


def render(text: str, delivery: Delivery, seed: int) -> Speech:
    """Say `text`; see `espnet_bestow.corpus.rendering.Renderer`."""
    recorder, native_rate = _synthesise(text, delivery, seed)
    if not recorder.blocks:
        raise RuntimeError(f"espeak-ng is silent about {text!r} ({delivery})")
    native = np.concatenate(recorder.blocks).astype(np.float32) / 32768
    onsets = {position: n / native_rate for position, n in recorder.onset_samples.items()}
    words = timed_words(text, onsets, recorder.end_sample / native_rate)
    return Speech(soxr.resample(native, native_rate, SAMPLE_RATE), words)
