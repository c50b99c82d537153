"""Where in the audio each token of a transcript was said, and a loss that makes attention look there.

Attention to speech emerges late and all at once, since nothing tells the connector where to look. For answers that
are transcripts the CTC head knows it: its best path puts every token on a few frames. Attention taught with that
emerges in a fraction of the steps, and later tells when each word was said.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = -1e30
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
    path = _best_path(logits.log_softmax(-1), lengths, target, target_lengths)  # (B, F)
    on = path[:, :, None] == tokens  # (B, F, N)
    some = on.any(1)
    first = torch.where(some, on.int().argmax(1), -1)
    last = torch.where(some, on.shape[1] - 1 - on.flip(1).int().argmax(1), -1)
    return Spans(first, last)


def _best_path(logp: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """Which token each frame belongs to on the best path, (B, F); -1 at blanks, padding and where there is no path."""
    batch, frames, classes = logp.shape
    # States: blank, token 0, blank, token 1, ..., blank.
    label = target.new_full((batch, 2 * target.shape[1] + 1), classes - 1)
    label[:, 1::2] = target.clamp(min=0)
    emit = logp.gather(2, label[:, None].expand(-1, frames, -1))  # (B, F, 2N + 1)
    # A path may leave out the blank between two different tokens.
    skip = torch.zeros_like(label, dtype=torch.bool)
    skip[:, 3::2] = label[:, 3::2] != label[:, 1:-2:2]
    score = torch.full_like(emit[:, 0], _NEVER)
    score[:, :2] = emit[:, 0, :2]
    steps = []
    for frame in range(1, frames):
        from_one = F.pad(score, (1, 0), value=_NEVER)[:, :-1]
        from_two = F.pad(score, (2, 0), value=_NEVER)[:, :-2].masked_fill(~skip, _NEVER)
        best, step = torch.stack([score, from_one, from_two]).max(0)
        alive = (frame < lengths)[:, None]
        score = torch.where(alive, best + emit[:, frame], score)
        steps.append(step.masked_fill(~alive, 0))
    end = 2 * target_lengths[:, None]  # (B, 1), the last blank
    tail = score.gather(1, torch.cat([end, (end - 1).clamp(min=0)], 1))  # (B, 2)
    state = torch.where(tail[:, 1:] > tail[:, :1], end - 1, end)
    states = [state]
    for step in reversed(steps):
        state = state - step.gather(1, state)
        states.append(state)
    path = torch.cat(states[::-1], 1)  # (B, F)
    real = torch.arange(frames, device=logp.device) < lengths[:, None]
    possible = tail.max(1, keepdim=True).values > _NEVER / 2
    return torch.where((path % 2 == 1) & real & possible, path // 2, -1)


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
