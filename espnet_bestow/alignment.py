"""Where in the audio each token of a transcript was said, and a loss that makes attention look there.

Attention to speech emerges late and all at once, since nothing tells the connector where to look. For answers that
are transcripts the CTC head knows it: its best path puts every token on a few frames. Attention taught with that
emerges in a fraction of the steps, and later tells when each word was said.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_bestow.ops import ctc_best_path

_SMALLEST = 1e-9
"""Attention below this has no gradient worth having."""


@dataclass(frozen=True)
class Spans:
    """First and last frame of every token, (B, N) each; -1 where a token has none."""

    first: Tensor
    last: Tensor


@torch.no_grad()
def ctc_spans(logits: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Spans:
    """The frames of every token on the best CTC path through ``target``; the last class is blank.

    Args:
        logits: (B, F, C).
        lengths: (B,) true frames.
        target: (B, N) ids; any value at padding.
        target_lengths: (B,).
    """
    tokens = torch.arange(target.shape[1], device=target.device)
    path = ctc_best_path(logits.float().log_softmax(-1), lengths, target, target_lengths)  # (B, F)
    on = path[:, :, None] == tokens  # (B, F, N)
    some = on.any(1)
    first = torch.where(some, on.int().argmax(1), -1)
    last = torch.where(some, on.shape[1] - 1 - on.flip(1).int().argmax(1), -1)
    return Spans(first, last)


def alignment_losses(weights: Tensor, visible: Tensor, spans: Spans) -> Tensor:
    """-log of the attention that each token pays to its own frames, mean over heads, (B, N).

    0 for a token without frames, or whose frames its position may not see yet.

    Args:
        weights: (B, H, N, F), row n from the position that predicts token n.
        visible: (B, N) frames that position may see.
        spans: of the N tokens.
    """
    frame = torch.arange(weights.shape[3], device=weights.device)
    inside = (frame >= spans.first[..., None]) & (frame <= spans.last[..., None])  # (B, N, F)
    mass = (weights * inside[:, None]).sum(-1)  # (B, H, N)
    known = (spans.first >= 0) & (spans.last < visible)
    return -(mass + _SMALLEST).log().mean(1).masked_fill(~known, 0.0)
