"""ESPnet's log-mel frames in one native call: windows, their Fourier transforms, the mel filters and the logarithm."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from espnet2.asr.frontend.default import DefaultFrontend
from torch import Tensor

from espnet_bestow.ops import native

_FLOOR = 1e-10
"""ESPnet takes no logarithm of less."""


def works_frame_by_frame(frontend: Any) -> bool:
    """Whether a frontend has an STFT whose frames stand above their samples."""
    return getattr(getattr(frontend, "stft", None), "center", False)


def padded_window(stft: Any) -> Tensor:
    """What a frontend's STFT multiplies the samples of a frame with, (N,)."""
    shape = torch.ones if stft.window is None else getattr(torch, f"{stft.window}_window")
    before = (stft.n_fft - stft.win_length) // 2
    window = F.pad(shape(stft.win_length), (before, stft.n_fft - stft.win_length - before))
    return window * stft.n_fft**-0.5 if stft.normalized else window


class NativeLogMel:
    """Log-mel frames of recordings as they are: what follows a recording is silence, whatever it is batched with.

    Args:
        frontend: ESPnet's `default`, which :meth:`fits`.
    """

    def __init__(self, frontend: Any):
        window = padded_window(frontend.stft)
        size = len(window)
        angles = torch.arange(size, dtype=torch.float64) * (2 * torch.pi / size)
        turns = torch.stack([angles.cos(), angles.sin()]).float()
        filters = frontend.logmel.melmat.T  # (M, N / 2 + 1), each not 0 for a few neighbours only
        reached = [row.nonzero().flatten().tolist() or [0, -1] for row in filters]
        bounds = [(found[0], found[-1] + 1) for found in reached]
        spans = torch.tensor([(first, end - first) for first, end in bounds])
        weights = torch.cat([row[first:end] for row, (first, end) in zip(filters, bounds, strict=True)])
        self.constants = window, turns, spans, weights, _FLOOR
        self.hop: int = frontend.stft.hop_length

    @staticmethod
    def fits(frontend: Any) -> bool:
        """Whether there is a kernel for a frontend: on a CPU, with windows of a power of two and a natural log."""
        if native is None or type(frontend) is not DefaultFrontend or not works_frame_by_frame(frontend):
            return False
        size, melmat = frontend.stft.n_fft, frontend.logmel.melmat
        at_home = melmat.device.type == "cpu" and melmat.dtype == torch.float32
        power_of_two = size >= 32 and size & (size - 1) == 0
        return at_home and power_of_two and frontend.logmel.log_base is None

    def __call__(self, audio: Sequence[Tensor], first: Sequence[int], last: Sequence[int]) -> Tensor:
        """Frames ``first`` to before ``last`` of recordings (S_i,), (B, T, 80); rows mean nothing behind them."""
        assert native is not None
        bounds = torch.tensor([first, [max(each) for each in zip(first, last, strict=True)]]).T.contiguous()
        return native.log_mel(list(audio), bounds, self.hop, *self.constants)
