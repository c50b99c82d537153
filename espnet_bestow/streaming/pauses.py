"""Long audio as segments: a pause ends one, speech begins the next, and silence in between is forgotten."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

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

    samples: Tensor  # (S,)


class End:
    """The present segment is complete."""


Event = Begin | Audio | End


class OneSegment:
    """No segmentation: everything is one segment."""

    def __init__(self) -> None:
        self._begun = False

    def take(self, samples: Tensor) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        if not self._begun:
            self._begun = True
            yield Begin(0)
        yield Audio(samples)

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        if self._begun:
            yield End()


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
        self._loudest = -torch.inf
        self._quiet = 0  # silent windows in a row
        self._inside = False
        self._done = 0  # samples that were looked at
        self._rest = torch.zeros(0)  # less than a window
        self._before = torch.zeros(0)
        self._keep = round(BEFORE * rate)

    def take(self, samples: Tensor) -> Iterator[Event]:
        """Events of the next samples (S,)."""
        joined = torch.cat([self._rest, samples])
        windows = joined[: len(joined) // self.window * self.window].unflatten(0, (-1, self.window))
        self._rest = joined[windows.numel() :].clone()
        loudness = 10.0 * windows.square().mean(1).clamp(min=1e-12).log10()  # (N,) dB
        begin = 0  # first window that was not passed on yet
        for number, level in enumerate(loudness.tolist()):
            speech = self._is_speech(level)
            if self._inside:
                self._quiet = 0 if speech else self._quiet + 1
                if self._quiet == self.patience:
                    yield Audio(windows[begin : number + 1].flatten())
                    yield End()
                    self._inside, begin = False, number + 1
            elif speech:
                lead = torch.cat([self._before, windows[begin:number].flatten()])[-self._keep :]
                yield Begin(self._done + number * self.window - len(lead))
                yield Audio(lead)
                self._inside, self._quiet, begin = True, 0, number
                self._before = lead[:0].clone()
        left = windows[begin:].flatten()
        self._done += windows.numel()
        if self._inside:
            yield Audio(left)
        else:
            self._before = torch.cat([self._before, left])[-self._keep :].clone()

    def end(self) -> Iterator[Event]:
        """Events of the end of the audio."""
        if self._inside:
            yield Audio(self._rest)
            yield End()

    def _is_speech(self, level: float) -> bool:
        self._loudest = max(level, self._loudest - self._fade)
        return level > max(self._loudest - self.below, self.floor)
