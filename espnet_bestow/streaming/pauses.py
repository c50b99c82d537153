"""Long audio as segments: a pause ends one, speech begins the next, and silence in between is forgotten."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WINDOW = 0.02
"""Seconds over which loudness is measured."""
BEFORE = 0.2
"""Seconds of silence kept before speech begins."""


@dataclass(frozen=True)
class Begin:
    """A segment begins; what follows belongs to it."""

    offset: int  # its first sample in the whole audio


@dataclass(frozen=True)
class Audio:
    """More audio of the present segment."""

    samples: np.ndarray  # (S,) float32


class End:
    """The present segment is complete."""


Event = Begin | Audio | End


class Segmentation(Protocol):
    """How audio becomes segments."""

    def take(self, samples: np.ndarray) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        ...

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        ...


class OneSegment:
    """No segmentation: everything is one segment."""

    def __init__(self) -> None:
        self._begun = False

    def take(self, samples: np.ndarray) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        if not self._begun:
            self._begun = True
            yield Begin(0)
        yield Audio(samples)

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        if self._begun:
            yield End()


class NoLongerThan:
    """Segments of another segmentation, cut wherever they reach ``most`` samples and go on.

    For policies that wait for the end: under others a segment goes on where its text has come to.
    """

    def __init__(self, segments: Segmentation, most: int):
        self.segments, self.most = segments, most
        self._offset, self._room = 0, most

    def take(self, samples: np.ndarray) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        for event in self.segments.take(samples):
            yield from self._cut(event)

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        for event in self.segments.end():
            yield from self._cut(event)

    def _cut(self, event: Event) -> Iterator[Event]:
        if isinstance(event, Begin):
            self._offset, self._room = event.offset, self.most
        if not isinstance(event, Audio):
            yield event
            return
        rest = event.samples
        while len(rest) > self._room:
            yield Audio(rest[: self._room])
            yield End()
            rest = rest[self._room :]
            self._offset, self._room = self._offset + self.most, self.most
            yield Begin(self._offset)
        self._room -= len(rest)
        yield Audio(rest)


class SilenceSegments:
    """A segment ends after ``silence`` seconds without speech.

    Loudness is measured in windows at fixed places of the audio, so that pushes of any size give the same segments. A
    window is silent when it is ``below`` dB quieter than the loudest one so far (fading by half a dB per second, so
    that a bang is forgotten), or quieter than ``floor`` dB of full scale.

    Args:
        silence: seconds.
        rate: samples per second.
        below: dB.
        floor: dB.
    """

    def __init__(self, silence: float, rate: int, below: float = 35.0, floor: float = -60.0):
        if silence <= WINDOW:
            raise ValueError(f"segment_silence={silence} must be > {WINDOW} s")
        self.window = round(WINDOW * rate)
        self.patience = round(silence * rate / self.window)  # windows
        self.below, self.floor = below, floor
        self._fade = 0.5 * WINDOW
        self._loudest = -np.inf
        self._quiet = 0  # silent windows in a row
        self._inside = False
        self._done = 0  # samples that were looked at
        self._rest = np.zeros(0, np.float32)  # less than a window
        self._before = np.zeros(0, np.float32)
        self._keep = round(BEFORE * rate)

    def take(self, samples: np.ndarray) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        joined = np.concatenate([self._rest, samples])
        windows = joined[: len(joined) // self.window * self.window].reshape(-1, self.window)
        self._rest = joined[windows.size :].copy()
        loudness = 10.0 * np.log10(np.maximum(np.square(windows).mean(1), 1e-12))  # (N,) dB
        begin = 0  # first window that was not passed on yet
        for number, level in enumerate(loudness.tolist()):
            speech = self._is_speech(level)
            if self._inside:
                self._quiet = 0 if speech else self._quiet + 1
                if self._quiet == self.patience:
                    yield Audio(windows[begin : number + 1].ravel())
                    yield End()
                    self._inside, begin = False, number + 1
            elif speech:
                lead = np.concatenate([self._before, windows[begin:number].ravel()])[-self._keep :]
                yield Begin(self._done + number * self.window - len(lead))
                yield Audio(lead)
                self._inside, self._quiet, begin = True, 0, number
                self._before = lead[:0].copy()
        left = windows[begin:].ravel()
        self._done += windows.size
        if self._inside:
            yield Audio(left)
        else:
            self._before = np.concatenate([self._before, left])[-self._keep :].copy()

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        if self._inside:
            yield Audio(self._rest)
            yield End()

    def _is_speech(self, level: float) -> bool:
        self._loudest = max(level, self._loudest - self._fade)
        return level > max(self._loudest - self.below, self.floor)
