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
