"""Lengths and masks that the encoders share."""

import torch

from espnet_bestow.errors import BadRowError


def check_lengths(lengths: torch.Tensor, encoder: str) -> None:
    """Refuse a row without frames: it has no output, and softmax over nothing is NaN."""
    if lengths.numel() and int(lengths.min()) < 1:
        row = int(lengths.argmin())
        raise BadRowError(row, f"{int(lengths[row])} feature frames, of which {encoder} can make nothing")


def valid_frames(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """True where a frame belongs to the utterance: (B,) -> (B, size) bool."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
