"""Normalisation that can stream: mean and variance of the frames heard so far."""

from pathlib import Path

import numpy as np
import torch
from espnet2.layers.abs_normalize import AbsNormalize

from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.ops import native

SMALLEST_VARIANCE = 1e-3


def moments(stats_file: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (80,) and standard deviation (80,) of what ESPnet's collect_stats has counted."""
    stats = np.load(stats_file)
    mean = stats["sum"] / stats["count"]
    variance = np.maximum(stats["sum_square"] / stats["count"] - mean**2, SMALLEST_VARIANCE)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float()


class RunningMVN(AbsNormalize):
    """``normalize: running_mvn``: utterance_mvn that needs no future.

    Frame t is normalised with the mean and variance of frames 0 ... t and of a few pseudo-frames, without which the
    first frame would always be zero. After a second of speech hardly anything is left of the pseudo-frames. Those of
    the training data (``stats_file``) bring the first words as close to utterance_mvn as the others.
    Values of exactly 0 are what SpecAugment has blanked, far above the mean of log-mel: they leave the moments as they
    are and stay 0, which is the mean afterwards.

    Args:
        stats_file: ESPnet's feats_stats.npz, as for global_mvn: mean and deviation of the pseudo-frames, bin by bin.
        prior_mean: the mean without a file. The defaults are those of ESPnet's log-mel of speech scaled to [-1, 1].
        prior_std: the standard deviation without a file.
        prior_frames: how many they are.
        norm_vars: divide by the standard deviation too.
    """

    ignores_padding = True

    def __init__(
        self,
        stats_file: str | Path | None = None,
        prior_mean: float = -7.0,
        prior_std: float = 3.0,
        prior_frames: float = 20.0,
        norm_vars: bool = True,
    ):
        super().__init__()
        if prior_std <= 0.0 or prior_frames <= 0.0:
            raise ValueError(f"running_mvn: prior_std={prior_std} and prior_frames={prior_frames} must be above 0")
        self.stats_file = stats_file
        mean, std = (torch.tensor(prior_mean), torch.tensor(prior_std)) if stats_file is None else moments(stats_file)
        # Not in the state: they belong to the configuration, as the other arguments do.
        self.register_buffer("prior_mean", mean, persistent=False)  # () or (80,)
        self.register_buffer("prior_std", std, persistent=False)
        self.prior_frames = prior_frames
        self.norm_vars = norm_vars

    def extra_repr(self) -> str:
        """For print(model)."""
        prior = f"prior_mean={self.prior_mean}, prior_std={self.prior_std}"
        return (
            f"{prior if self.stats_file is None else f'stats_file={self.stats_file}'}, "
            f"prior_frames={self.prior_frames}, norm_vars={self.norm_vars}"
        )

    def start(self, rows: int, bins: int, device: torch.device | None = None) -> torch.Tensor:
        """Moments (B, 3, 80) of streams that have heard nothing: the pseudo-frames.

        How many frames, the sum of the features less the prior mean, and the sum of their squares; in float64, so that
        hours of frames add up exactly.
        """
        zeros = torch.zeros(rows, bins, dtype=torch.float64, device=device)
        return torch.stack([zeros + self.prior_frames, zeros, zeros + self.prior_frames * self.prior_std**2], 1)

    def advance(
        self, feats: torch.Tensor, past: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, 80) frames that follow ``past`` -> (B, T, 80) normalised, and the moments after them.

        Args:
            feats: (B, T, 80).
            past: moments before them, see :meth:`start`.
            lengths: (B,) how many frames of each row count, by default all T; at least 1. What follows them becomes 0.
        """
        if (
            native is not None
            and feats.device.type == "cpu"
            and feats.dtype == torch.float32
            and not feats.requires_grad
        ):
            return self._advance_natively(feats, past, lengths)
        weights, totals, squares = past.unbind(1)
        heard = feats != 0.0
        x = feats.float() - self.prior_mean
        # Sums in float64, single frames in float32: the rest of a recording must not depend on how it was cut.
        # Nearly always; a GPU would have to be waited for.
        everything = feats.device.type == "cpu" and bool(heard.all())
        if everything:
            count = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)[:, None] + weights[:, None]  # (B, T, 80)
        else:
            x.masked_fill_(~heard, 0.0)
            count = heard.cumsum(1, dtype=torch.float64).add_(weights[:, None])
        total = x.cumsum(1, dtype=torch.float64).add_(totals[:, None])
        square = x.square().cumsum(1, dtype=torch.float64).add_(squares[:, None])
        mean = (total / count).to(x.dtype)
        out = x - mean
        if self.norm_vars:
            # The pseudo-frames keep the variance away from zero; rounding, after hours of digital silence, might not.
            variance = (square / count).to(x.dtype) - mean.square()
            out = out * variance.clamp_(min=SMALLEST_VARIANCE).rsqrt_()
        if not everything:
            out = out.masked_fill_(~heard, 0.0)
        row = torch.arange(len(x), device=x.device)
        if lengths is None:
            last = torch.full_like(row, x.shape[1] - 1)
        else:
            last = lengths - 1
            out = out.masked_fill(~valid_frames(lengths, x.shape[1])[..., None], 0.0)
        return out.to(feats.dtype), torch.stack([each[row, last] for each in (count, total, square)], 1)

    def _advance_natively(
        self, feats: torch.Tensor, past: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert native is not None
        rows, frames, bins = feats.shape
        lengths = torch.full((rows,), frames) if lengths is None else lengths.long().cpu()
        return native.running_mvn(feats, lengths, past.contiguous(), *self.constants(bins))

    def constants(self, bins: int) -> tuple[torch.Tensor, float, bool]:
        """For kernels: the mean of the pseudo-frames (bins,), the smallest variance, whether they divide by it."""
        return self.prior_mean.expand(bins).contiguous(), SMALLEST_VARIANCE, self.norm_vars

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, 80), (B,) -> (B, T, 80) with 0 at padding, (B,)."""
        if input_lengths is None:
            input_lengths = torch.full((input.shape[0],), input.shape[1], device=input.device)
        past = self.start(input.shape[0], input.shape[2], input.device)
        return self.advance(input, past, input_lengths)[0], input_lengths
