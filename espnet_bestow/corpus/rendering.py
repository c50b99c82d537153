"""The face that every renderer shows, and the word times that come with its speech."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Delivery:
    """How a text is said: rate in words per minute, pitch and pitch range from 0 to 99."""

    language: str
    variant: str
    rate: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True)
class TimedWord:
    """A word and when it is said, in seconds from the start of the audio."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """Samples (S,) at 16 kHz, float32 in [-1, 1], and the words with their times."""

    samples: np.ndarray
    words: tuple[TimedWord, ...]

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return len(self.samples) / SAMPLE_RATE


type Renderer = Callable[[str, Delivery, int], Speech]
"""render(text, delivery, seed) -> Speech: the same arguments give the same samples, always."""


def timed_words(text: str, onsets: Mapping[int, float], end: float) -> tuple[TimedWord, ...]:
    """Give every word of `text` a time.

    Args:
        text: Words separated by single blanks.
        onsets: Seconds by position in `text` (0-based) of the words whose onset is known; a word
            without one shares the time of its known neighbours in proportion to its letters.
        end: When the last word ends, in seconds.
    """
    words = text.split()
    positions = [0]
    for word in words:
        positions.append(positions[-1] + len(word) + 1)
    known = {0: 0.0, **{p: onsets[p] for p in positions[:-1] if p in onsets}, positions[-1]: end}
    # A clock never runs backwards, whatever the synthesiser reports.
    anchors = sorted(known)
    times = np.maximum.accumulate([min(known[anchor], end) for anchor in anchors])
    starts = np.interp(positions, anchors, times)
    return tuple(
        TimedWord(word, float(start), float(stop))
        for word, start, stop in zip(words, starts[:-1], starts[1:], strict=True)
    )
