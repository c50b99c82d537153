"""The terms of the loss that are about frames: CTC, and the distance to the frames of a teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.connectors import Speech

LENGTHS_DIFFER = 2
"""Frames by which two encoders of the same frame rate may differ at the end of an utterance."""


def ctc_losses(logits: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC losses, (B,); the last class is blank.

    A target longer than its frames has no alignment and contributes 0 (see :func:`too_long`).

    Args:
        logits: (B, F, C).
        lengths: (B,).
        target: (B, N) ids.
        target_lengths: (B,).
    """
    logp = logits.float().log_softmax(-1).transpose(0, 1)
    blank = logits.shape[-1] - 1
    return F.ctc_loss(
        logp, target.clamp(min=0), lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True
    )


def too_long(lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """Which rows have fewer frames than CTC needs: one for each token, one more between two that are equal.

    Args:
        lengths: (B,) frames.
        target: (B, N) ids.
        target_lengths: (B,).

    Returns:
        (B,) bool.
    """
    inside = torch.arange(target.shape[1], device=target.device)[1:] < target_lengths[:, None]
    repeats = ((target[:, 1:] == target[:, :-1]) & inside).sum(1)
    return target_lengths + repeats > lengths


def frame_distance(pupil: Speech, teacher: Speech) -> Tensor:
    """The mean squared distance of two encoders' frames (B, F, D_enc), summed over those of each recording, (B,)."""
    widths = teacher.frames.shape[2], pupil.frames.shape[2]
    if widths[0] != widths[1]:
        raise ValueError(f"the teacher's frames are {widths[0]} wide, those of the encoder {widths[1]}")
    # Down-sampling rounds differently at the end.
    shared = torch.minimum(teacher.lengths, pupil.lengths)
    if int((teacher.lengths - pupil.lengths).abs().max()) > LENGTHS_DIFFER:
        found = f"{teacher.lengths.tolist()} and {pupil.lengths.tolist()}"
        raise ValueError(f"teacher and encoder differ in their frame rate: they make {found} frames")
    width = int(shared.max())
    distance = (teacher.frames[:, :width] - pupil.frames[:, :width]).square().mean(2)  # (B, F)
    inside = torch.arange(width, device=shared.device) < shared[:, None]
    return distance.masked_fill(~inside, 0.0).sum(1)
