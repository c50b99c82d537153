"""From clean speech to what a microphone stores: noise, level, 16-bit samples.

Same seed, same bytes on every machine: the arithmetic below is element-wise or over integers, so
no result depends on the order of a floating-point sum.
"""

import math
from dataclasses import dataclass

import numpy as np

_FULL_SCALE = 32767
# Four-tap moving average: dulls the noise a little, and divides the variance of white noise by 4.
_TAPS = 4


@dataclass(frozen=True)
class Channel:
    """Signal-to-noise ratio in dB (None: no noise) and the peak level from 0 to 1."""

    snr: float | None
    gain: float


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Round samples (S,) in [-1, 1] to 16 bit."""
    return np.rint(np.clip(samples, -1, 1) * _FULL_SCALE).astype(np.int16)


def _noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Dull Gaussian noise (length,) of standard deviation 1."""
    white = rng.standard_normal(length + _TAPS - 1)
    total = sum(white[tap : tap + length] for tap in range(_TAPS))
    return np.asarray(total) / math.sqrt(_TAPS)


def record(samples: np.ndarray, channel: Channel, rng: np.random.Generator) -> np.ndarray:
    """Return the 16-bit recording (S,) of clean speech (S,)."""
    signal = to_pcm(samples).astype(np.int64)
    mixed = signal.astype(np.float64)
    if channel.snr is not None:
        power = int((signal * signal).sum()) / len(signal)
        mixed = mixed + _noise(rng, len(signal)) * math.sqrt(power / 10 ** (channel.snr / 10))
    peak = float(np.abs(mixed).max())
    if peak == 0:
        raise ValueError("the speech is silent")
    return to_pcm(mixed / peak * channel.gain)
