"""Tone speech: every letter a chord of two sines. A stand-in for real speech in quick tests."""

import math
from functools import cache

import numpy as np

from espnet_bestow.corpus.rendering import SAMPLE_RATE, Delivery, Speech, timed_words

_LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß "
_LETTER_SECONDS = 0.06
_USUAL_RATE = 170
_AMPLITUDE = 0.3


@cache
def _sine_table() -> np.ndarray:
    """One second of 1 Hz (16000,); rounded, so that every machine has the same bits."""
    turn = 2 * math.pi / SAMPLE_RATE
    return np.array([round(math.sin(turn * n), 6) for n in range(SAMPLE_RATE)], dtype=np.float32)


def _frequencies(letter: str, delivery: Delivery) -> tuple[int, int]:
    """Two formants in Hz on a 6 x 6 grid of letters, moved by the pitch and the speaker."""
    if letter not in _LETTERS:
        raise ValueError(f"tone speech has no sound for {letter!r}; it knows {_LETTERS!r}")
    row, column = divmod(_LETTERS.index(letter), 6)
    shift = delivery.pitch + 5 * (sum(map(ord, delivery.variant)) % 8)
    return 300 + 120 * row + shift, 1200 + 300 * column + 2 * shift


def render(text: str, delivery: Delivery, seed: int) -> Speech:
    """Sound `text` letter by letter, blanks as silence; `seed` moves the phase only."""
    length = round(_LETTER_SECONDS * SAMPLE_RATE * _USUAL_RATE / delivery.rate)
    table, clock = _sine_table(), np.arange(length) + seed % SAMPLE_RATE
    samples = np.zeros((len(text), length), dtype=np.float32)
    for row, letter in zip(samples, text, strict=True):
        if letter != " ":
            low, high = _frequencies(letter, delivery)
            row += table[low * clock % SAMPLE_RATE] + table[high * clock % SAMPLE_RATE]
    ramp = np.minimum(np.arange(length), np.arange(length)[::-1]).clip(max=16) / np.float32(16)
    seconds = length / SAMPLE_RATE
    onsets = {n + 1: (n + 1) * seconds for n, letter in enumerate(text) if letter == " "}
    words = timed_words(text, onsets, len(text) * seconds)
    return Speech((samples * ramp * _AMPLITUDE).astype(np.float32).reshape(-1), words)
