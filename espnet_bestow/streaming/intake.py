"""Audio as callers have it, of any rate, width and channels, as float32 mono at the listener's rate."""

import numpy as np
import soxr
from torch import Tensor

from espnet_bestow.audio import mono


class Intake:
    """Takes one session's pushes; its output does not depend on how the audio was cut into them.

    Args:
        rate: sample rate of the output.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self.rate_in: int | None = None  # fixed by the first push
        self.samples_in = 0
        self._resampler: soxr.ResampleStream | None = None

    @property
    def seconds(self) -> float:
        """Audio taken in so far."""
        return self.samples_in / (self.rate_in or self.rate)

    def take(self, samples: np.ndarray | Tensor, sample_rate: int | None = None) -> np.ndarray:
        """samples (S,) or (S, channels), float in -1 to 1 or integer PCM -> what can be said of (S',) so far."""
        array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
        taken = mono(array, f"samples after {self.seconds:.3f} s")
        self._fix_rate(sample_rate or self.rate_in or self.rate)
        self.samples_in += len(taken)
        if self._resampler is None:
            return taken
        return np.asarray(self._resampler.resample_chunk(taken))

    def end(self) -> np.ndarray:
        """The rest, once no more audio comes."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        return np.asarray(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def _fix_rate(self, rate: int) -> None:
        if self.rate_in is None:
            if rate <= 0:
                raise ValueError(f"sample_rate={rate} must be > 0")
            self.rate_in = rate
            if rate != self.rate:
                self._resampler = soxr.ResampleStream(rate, self.rate, 1, dtype="float32", quality="HQ")
        elif rate != self.rate_in:
            raise ValueError(
                f"sample_rate={rate} after {self.seconds:.3f} s at {self.rate_in}: the rate of a session is fixed by "
                "its first push"
            )
