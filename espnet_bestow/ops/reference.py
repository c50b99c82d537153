"""Plain PyTorch twins of the ops: the maths written down, the fallback, and what tests compare kernels with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def staircase_attention(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    v: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, D)
    """See :func:`espnet_bestow.ops.staircase_attention`."""
    frames = k.shape[2]
    if frames == 0:
        return torch.zeros_like(q)
    # A row without any key has no softmax; it computes on key 0 and is then overwritten with 0, which also stops
    # its gradient. (Masking it fully would give NaN in some of torch's attention backends.)
    blind = visible <= 0
    mask = torch.arange(frames, device=q.device) < visible.clamp(min=1).unsqueeze(-1)  # (B, U, F)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1), scale=scale, enable_gqa=grouped)
    return out.masked_fill(blind[:, None, :, None], 0.0)


def staircase_weights(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, F)
    """See :func:`espnet_bestow.ops.staircase_weights`."""
    keys = k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ keys.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    unseen = torch.arange(k.shape[2], device=q.device) >= visible[:, None, :, None]  # (B, 1, U, F)
    # Where nothing is seen, the softmax is over equal scores and its result is then overwritten.
    return scores.masked_fill(unseen, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(unseen, 0.0)


def depthwise(
    frames: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, 1, K)
    bias: Tensor | None = None,  # (C,)
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:  # (B, T', C)
    """See :func:`espnet_bestow.ops.depthwise`. Frames are pixels of C channels, all in one row."""
    pixels = frames.mT[:, :, None].contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
    out = F.conv2d(pixels, weight[:, :, None], bias, (1, stride), (0, padding), (1, dilation), frames.shape[2])
    return out[:, :, 0].mT


PANEL = 16
"""Outputs of a linear layer whose weights :func:`panels` puts side by side."""


def panels(weight: Tensor) -> Tensor:
    """(N, K) -> (N / 16, K, 16)."""
    return weight.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def panel_linear(
    x: Tensor,  # (..., K)
    panels: Tensor,  # (N / 16, K, 16)
    bias: Tensor | None,  # (N,)
) -> Tensor:  # (..., N)
    """See :func:`espnet_bestow.ops.native.panel_linear`."""
    return F.linear(x, panels.transpose(1, 2).flatten(0, 1), bias)


def few_rows_linear(
    x: Tensor,  # (M, K) float32
    weight: Tensor,  # (N, K) float32, bfloat16 or int8
    scale: Tensor | None = None,  # (N) float32
    bias: Tensor | None = None,  # (N) float32
) -> Tensor:  # (M, N) float32
    """See :func:`espnet_bestow.ops.few_rows_linear`."""
    out = F.linear(x, weight.to(x.dtype))
    if scale is not None:
        out = out * scale
    return out if bias is None else out + bias


_NEVER = -1e30


def ctc_best_path(
    logp: Tensor,  # (B, F, C)
    lengths: Tensor,  # (B,) int64
    target: Tensor,  # (B, N) int64
    target_lengths: Tensor,  # (B,) int64
) -> Tensor:  # (B, F) int64
    """See :func:`espnet_bestow.ops.ctc_best_path`."""
    batch, frames, classes = logp.shape
    # States: blank, token 0, blank, token 1, ..., blank.
    label = target.new_full((batch, 2 * target.shape[1] + 1), classes - 1)
    label[:, 1::2] = target.clamp(min=0)
    emit = logp.gather(2, label[:, None].expand(-1, frames, -1)).transpose(0, 1)  # (F, B, S)
    # What it costs to come from two states before, from one, and to stay: a path may leave out the blank between two
    # different tokens.
    moves = emit.new_zeros(*label.shape, 3)
    moves[:, :, 0] = _NEVER
    moves[:, 3::2, 0] = torch.where(label[:, 3::2] != label[:, 1:-2:2], 0.0, _NEVER)
    # Two states before the first, which no path comes from.
    score = emit.new_full((frames, batch, label.shape[1] + 2), _NEVER)
    score[:1, :, 2:4] = emit[:1, :, :2]
    back = label.new_zeros(frames, *label.shape)
    for frame in range(1, frames):
        best, move = (score[frame - 1].unfold(1, 3, 1) + moves).max(2)
        score[frame, :, 2:] = best + emit[frame]
        back[frame] = 2 - move
    heard = torch.arange(frames, device=logp.device)[:, None] < lengths  # (F, B)
    if frames == 0:
        return heard.T.long()
    last = score[(lengths - 1).clamp(min=0), torch.arange(batch, device=logp.device), 2:]  # (B, S)
    end = 2 * target_lengths[:, None]  # (B, 1), the last blank
    tail = last.gather(1, torch.cat([end, (end - 1).clamp(min=0)], 1))  # (B, 2)
    state = torch.where(tail[:, 1:] > tail[:, :1], end - 1, end)
    states = [state]
    for move in back.masked_fill_(~heard[..., None], 0)[1:].flip(0):
        state = state - move.gather(1, state)
        states.append(state)
    path = torch.cat(states[::-1], 1)  # (B, F)
    possible = tail.max(1, keepdim=True).values > _NEVER / 2
    return torch.where((path % 2 == 1) & heard.T & possible, path // 2, -1)
