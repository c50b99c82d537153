"""Audio as Kaldi-style data directories name it: files, shell pipes, segments of recordings."""

import io
import subprocess
from dataclasses import dataclass

import numpy as np

from espnet_bestow.audio import WHOLE, AudioError, Span, read_audio


@dataclass(frozen=True)
class AudioSource:
    """Where the audio of one or several rows comes from.

    Attributes:
        location: A file, or a shell command that ends in ``|`` and writes audio to its stdout.
        span: The part of it.
    """

    location: str
    span: Span = WHOLE

    @property
    def is_pipe(self) -> bool:
        """Whether a command must be run."""
        return self.location.rstrip().endswith("|")

    @property
    def is_whole_file(self) -> bool:
        """Whether the file itself is the audio, uncut."""
        return not self.is_pipe and self.span == WHOLE


def read_source(source: AudioSource, rate: int, *, uid: str = "", max_seconds: float | None = None) -> np.ndarray:
    """Read a source as float32 mono (S,); see ``read_audio`` for limits and errors."""
    audio: str | io.BytesIO = source.location
    if source.is_pipe:
        audio = _run_pipe(source.location, uid)
    return read_audio(audio, rate, uid=uid, max_seconds=max_seconds, span=source.span)


def _run_pipe(location: str, uid: str) -> io.BytesIO:
    command = location.rstrip().removesuffix("|")
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        value = f"exit status {done.returncode}: {last[0]}"
        raise AudioError("pipe failed", location, value, uid)
    stream = io.BytesIO(done.stdout)
    stream.name = location
    return stream
