"""Typed faces of the attention ops; callers never know which implementation runs.

Every op has a plain PyTorch twin (:mod:`espnet_bestow.ops.reference`). Where a compiled kernel takes the tensors
(:mod:`espnet_bestow.ops.native`), it runs instead; ``BESTOW_OPS=reference`` in the environment turns that off.
"""

import importlib
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from espnet_bestow.ops import reference

_choice = os.environ.get("BESTOW_OPS", "")
if _choice not in ("", "reference"):
    raise ValueError(f"BESTOW_OPS={_choice}: the only value is 'reference'")
native: ModuleType | None = None
if not _choice:
    try:
        native = importlib.import_module("espnet_bestow.ops.native")
    except ImportError as error:
        logging.getLogger(__name__).warning("attention runs on PyTorch alone, without compiled kernels (%s)", error)

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
    if native is not None and native.takes(q):
        return native.staircase_attention(q, k, v, visible, scale)
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
