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


class SourceReader:
    """Reads sources one after the other; the output of the last pipe is kept for its other parts."""

    def __init__(self) -> None:
        self._location = ""
        self._output: bytes | AudioError = b""

    def read(self, source: AudioSource, rate: int, *, uid: str = "", max_seconds: float | None = None) -> np.ndarray:
        """Read a source as float32 mono (S,); see ``read_audio`` for limits and errors."""
        audio = self._output_of(source.location, uid) if source.is_pipe else source.location
        return read_audio(audio, rate, uid=uid, max_seconds=max_seconds, span=source.span)

    def _output_of(self, location: str, uid: str) -> io.BytesIO:
        if location != self._location:
            self._output = b""  # two recordings at a time would be twice the memory
            self._location, self._output = location, _run_pipe(location)
        if isinstance(self._output, AudioError):
            failed = self._output
            raise AudioError(failed.problem, failed.file, failed.value, uid)
        stream = io.BytesIO(self._output)
        stream.name = location
        return stream


def read_source(source: AudioSource, rate: int, *, uid: str = "", max_seconds: float | None = None) -> np.ndarray:
    """Read one source; see ``SourceReader``."""
    return SourceReader().read(source, rate, uid=uid, max_seconds=max_seconds)


def _run_pipe(location: str) -> bytes | AudioError:
    command = location.rstrip().removesuffix("|")
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    if done.returncode == 0:
        return done.stdout
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    return AudioError("pipe failed", location, f"exit status {done.returncode}: {last[0]}")
