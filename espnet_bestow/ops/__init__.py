"""Typed faces of the attention ops; callers never know which implementation runs.

Today every op is its plain PyTorch twin (:mod:`espnet_bestow.ops.reference`).
"""

import torch
from torch import Tensor

from espnet_bestow.ops import reference

__all__ = ["staircase_attention", "staircase_weights"]


def staircase_attention(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    v: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, D)
    """Attention in which query row (b, u) sees exactly the first ``visible[b, u]`` keys.

    A row that sees 0 keys gets exactly 0 and passes no gradient. H must be a multiple of H_kv (grouped heads).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together.
    """
    _check(q, k, v, visible)
    return reference.staircase_attention(q, k, v, visible, scale)


def staircase_weights(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, F)
    """The weights that :func:`staircase_attention` gives to each key; exactly 0 in rows that see none.

    For the few rows whose weights are wanted themselves (where does a token look?); no kernel stands behind it.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together.
    """
    _check(q, k, k, visible)
    return reference.staircase_weights(q, k, visible, scale)


def _check(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, visible {tuple(visible.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape:
        raise ValueError(f"staircase_attention wants q (B, H, U, D), k and v (B, H_kv, F, D), got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % max(k.shape[1], 1):
        raise ValueError(f"staircase_attention: batch, width or head groups differ: {shapes}")
    if visible.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"staircase_attention: visible must be (B, U) = {(q.shape[0], q.shape[2])}, got {shapes}")
    if visible.dtype != torch.int32:
        raise ValueError(f"staircase_attention: visible must be int32, got {visible.dtype}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"staircase_attention: dtypes differ: q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if not q.device == k.device == v.device == visible.device:
        raise ValueError(f"staircase_attention: devices differ: q {q.device}, k {k.device}, visible {visible.device}")
