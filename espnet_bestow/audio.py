"""Read any audio file as float32 mono at one rate, and refuse bad ones with one clear line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

# libsndfile shortens a cut RIFF/AIFF file silently; its parsing log is the only trace of the cut.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Writers into a pipe cannot seek back and leave a huge size in the header: no sign of a cut.
_STREAMED_SIZE = 0x7FFF0000
# What libsndfile says of a FLAC whose writer could not go back and note its length.
_NO_LENGTH = 1 << 62
# The length in an MP3 header is an estimate; other formats count their frames exactly.
_MP3_TOLERANCE = 0.95

_CHANNELS = 64
"""More are taken for samples in the place of channels."""


class AudioError(ValueError):
    """Audio that cannot be used; keeps the parts of its message for tables of rejected rows."""

    def __init__(self, problem: str, file: str, value: str, uid: str = "") -> None:
        self.problem, self.file, self.value, self.uid = problem, file, value, uid
        utterance = f"utterance '{uid}': " if uid else ""
        super().__init__(f"{utterance}{file}: {problem} ({value})")

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str, str, str]]:
        """Worker processes send it home by its parts; an exception's own way is by its message."""
        return type(self), (self.problem, self.file, self.value, self.uid)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says."""

    rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        """Length of the whole file."""
        return self.frames / self.rate


@dataclass(frozen=True)
class Span:
    """Part of a recording in seconds; ``end=None`` is the end of the recording."""

    start: float = 0.0
    end: float | None = None


WHOLE = Span()


def audio_info(path: str | Path, uid: str = "") -> AudioInfo:
    """Read only the header of a file.

    Raises:
        AudioError: The file is missing, not audio, cut or empty.
    """
    with _open(path, str(path), uid) as sound:
        return _checked_header(sound, str(path), uid)


def audio_pieces(path: str | Path, seconds: float, uid: str = "") -> Iterator[tuple[np.ndarray, int]]:
    """Decode a file piece by piece; an hour of it costs no more memory than a minute.

    Args:
        path: File.
        seconds: Length of a piece; the last one may be shorter.
        uid: Utterance id for error messages.

    Yields:
        Float32 samples (S, channels) and their rate.

    Raises:
        AudioError: The file is missing, not audio, cut or empty; what comes before a cut is yielded.
    """
    name = str(path)
    with _open(path, name, uid) as sound:
        info = _checked_header(sound, name, uid)
        size, come = max(1, round(seconds * info.rate)), 0
        while len(piece := _read(sound, size, name, uid)):
            come += len(piece)
            yield piece, info.rate
        _check_complete(sound, come, info.frames, (name, uid))


def read_audio(
    path: str | Path | BinaryIO,
    rate: int = 16000,
    *,
    uid: str = "",
    max_seconds: float | None = None,
    span: Span = WHOLE,
) -> np.ndarray:
    """Read audio of any rate and channel count.

    Args:
        path: File, or an open binary stream.
        rate: Sampling rate of the result in Hz.
        uid: Utterance id for error messages.
        max_seconds: Longer audio is refused by its header, before anything is decoded.
        span: Part of the recording to read.

    Returns:
        Float32 mono samples (S,), channels averaged.

    Raises:
        AudioError: The audio is missing, not audio, cut, empty, too long, or not finite.
    """
    name = str(path if isinstance(path, str | Path) else getattr(path, "name", path))
    with _open(path, name, uid) as sound:
        info = _checked_header(sound, name, uid)
        first, last = _frame_range(span, info, name, uid)
        seconds = (last - first) / info.rate
        if max_seconds is not None and seconds > max_seconds:
            raise AudioError("too long", name, f"{seconds:.1f} s, limit {max_seconds:g} s", uid)
        samples = _decode(sound, first, last, (name, uid))
    mono = samples.mean(axis=1, dtype=np.float32)
    bad = int(np.count_nonzero(~np.isfinite(mono)))
    if bad:
        raise AudioError("NaN or infinite samples", name, f"{bad} of {len(mono)} samples", uid)
    mono = resample(mono, info.rate, rate)
    if len(mono) == 0:
        raise AudioError("zero samples", name, f"0 samples at {rate} Hz", uid)
    return mono


def mono(samples: np.ndarray, whose: str) -> np.ndarray:
    """Samples as callers have them as float32 (S,), channels averaged.

    Args:
        samples: (S,) or (S, channels), float in -1 to 1 or signed integer PCM.
        whose: "samples" and where they come from: what an error is about.

    Raises:
        ValueError: They are neither, or not finite.
    """
    kind = samples.dtype.kind
    if kind == "i":  # PCM; training saw -1 to 1
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif kind != "f" and samples.size:
        raise ValueError(f"{whose} are of type {samples.dtype}; float or signed integer PCM is needed")
    samples = samples.astype(np.float32, copy=False)  # whoever keeps samples copies them
    # (channels, S) as torchaudio has it would be averaged over time without a word.
    if samples.ndim == 2 and 1 <= samples.shape[1] <= _CHANNELS:
        samples = samples.mean(axis=1, dtype=np.float32)
    if samples.ndim != 1:
        raise ValueError(f"{whose} have shape {samples.shape}; (S,) or (S, channels) is needed")
    if bad := int(np.count_nonzero(~np.isfinite(samples))):
        raise ValueError(f"{whose} are NaN or infinite: {bad} of {len(samples)}")
    return np.ascontiguousarray(samples)


def resample(samples: np.ndarray, rate_in: float, rate_out: float) -> np.ndarray:
    """Resample float32 samples (S,) with soxr's high quality setting."""
    if rate_in == rate_out:
        return samples
    return soxr.resample(samples, rate_in, rate_out, quality="HQ").astype(np.float32, copy=False)


def _open(path: str | Path | BinaryIO, name: str, uid: str) -> soundfile.SoundFile:
    if isinstance(path, str | Path):
        if not Path(path).exists():
            raise AudioError("missing file", name, "no such file", uid)
        if not Path(path).is_file():
            raise AudioError("not an audio file", name, "not a regular file", uid)
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", str(error)) or "format not recognised"
        size = f", {Path(path).stat().st_size} bytes" if isinstance(path, str | Path) else ""
        raise AudioError("not an audio file", name, f"{reason.rstrip('.')}{size}", uid) from error


def _checked_header(sound: soundfile.SoundFile, name: str, uid: str) -> AudioInfo:
    for claimed, found in _CUT_CHUNK.findall(sound.extra_info):
        if int(found) < int(claimed) < _STREAMED_SIZE:
            value = f"{found} of {claimed} bytes of audio"
            raise AudioError("truncated file", name, value, uid)
    if sound.frames == 0:
        raise AudioError("zero samples", name, "0 samples", uid)
    if sound.frames >= _NO_LENGTH:
        value = f"{sound.format} written into a pipe; convert it, for example to WAV"
        raise AudioError("its header does not say how long it is", name, value, uid)
    return AudioInfo(sound.samplerate, sound.channels, sound.frames, sound.format, sound.subtype)


def _frame_range(span: Span, info: AudioInfo, name: str, uid: str) -> tuple[int, int]:
    first = round(span.start * info.rate)
    last = info.frames if span.end is None else round(span.end * info.rate)
    # Segment times are rounded by their writers: a tenth of a second past the end is tolerated.
    if first < 0 or last <= first or last > info.frames + 0.1 * info.rate or first >= info.frames:
        value = f"{span.start:g} to {span.end} s of {info.seconds:.3f} s"
        raise AudioError("segment outside of its recording", name, value, uid)
    return first, min(last, info.frames)


def _decode(sound: soundfile.SoundFile, first: int, last: int, name_uid: tuple[str, str]) -> np.ndarray:
    """Decode frames [first, last) to float32 (S, channels)."""
    samples = _read(sound, last - first, *name_uid, first=first)
    _check_complete(sound, len(samples), last - first, name_uid)
    return samples


def _read(sound: soundfile.SoundFile, count: int, name: str, uid: str, first: int = 0) -> np.ndarray:
    """Decode the next ``count`` frames, or those from ``first`` on, to float32 (S, channels); fewer at the end."""
    try:
        if first:
            sound.seek(first)
        return np.asarray(sound.read(count, dtype="float32", always_2d=True))
    except soundfile.LibsndfileError as error:
        value = f"decoder failed, header says {sound.frames} samples"
        raise AudioError("truncated file", name, value, uid) from error


def _check_complete(sound: soundfile.SoundFile, come: int, expected: int, name_uid: tuple[str, str]) -> None:
    name, uid = name_uid
    tolerance = _MP3_TOLERANCE if sound.format == "MP3" else 1.0
    if come < tolerance * expected:
        raise AudioError("truncated file", name, f"{come} of {expected} samples", uid)


def hertz(value: int | str) -> int:
    """A sample rate as ESPnet's configurations have it, 16000 or 16k."""
    from humanfriendly import parse_size

    return value if isinstance(value, int) else int(parse_size(value))
