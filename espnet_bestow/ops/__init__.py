"""Typed faces of the ops; callers never know which implementation runs.

Every op has a plain PyTorch twin (:mod:`espnet_bestow.ops.reference`). Where a compiled kernel takes the tensors
(:mod:`espnet_bestow.ops.native`), it runs instead; ``BESTOW_OPS=reference`` in the environment turns that off.
"""

import importlib
import logging
import os
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.ops import reference

_choice = os.environ.get("BESTOW_OPS", "")
if _choice not in ("", "reference"):
    raise ValueError(f"BESTOW_OPS={_choice}: the only value is 'reference'")
native: ModuleType | None = None
if not _choice:
    try:
        native = importlib.import_module("espnet_bestow.ops.native")
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "attention runs on PyTorch alone, without compiled kernels (%s); they are built by `make setup`, or by "
            "`pip install --no-build-isolation .` where torch, ninja and a C++ compiler are",
            error,
        )

__all__ = [
    "Linear",
    "built",
    "causal_attention",
    "ctc_best_path",
    "depthwise",
    "few_rows_linear",
    "laid_out",
    "linear",
    "or_empty",
    "staircase_attention",
    "staircase_weights",
    "weight_and_bias",
]


def built() -> ModuleType:
    """The compiled ops, for programs that are about nothing else: these end with one line where there are none."""
    if native is None:
        raise SystemExit("error: the compiled kernels are not built (`make setup` does it), or BESTOW_OPS is set")
    return native


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


def causal_attention(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, U, D)
    v: Tensor,  # (B, H_kv, U, D)
    before: Tensor,  # (B, U) int32: 1, 2, 3 and so on, 0 at padding behind a text
    scale: float | None = None,
) -> Tensor:  # (B, H, U, D)
    """Each position of a text sees itself and what came before it, a staircase with steps of one.

    At padding the result has no meaning.
    """
    if native is not None and q.device.type == "cpu" and native.takes(q):
        return native.staircase_attention(q, k, v, before, scale)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def staircase_weights(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, F)
    """The weights that :func:`staircase_attention` gives to each key; exactly 0 in rows that see none.

    For rows whose weights are wanted themselves: where does a token look? Up to 8 of a key head have a kernel, without
    gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together.
    """
    _check(q, k, k, visible)
    if native is not None and native.takes_weights(q, k):
        return native.staircase_weights(q, k, visible, scale)
    return reference.staircase_weights(q, k, visible, scale)


def few_rows_linear(
    x: Tensor,  # (M, K) float32
    weight: Tensor,  # (N, K) float32, bfloat16 or int8
    scale: Tensor | None = None,  # (N) float32, of int8 weights
    bias: Tensor | None = None,  # (N) float32
) -> Tensor:  # (M, N) float32
    """``F.linear`` with few input rows, for inference: what it costs is to read the weights once.

    Where a gradient is wanted, PyTorch does it. Sums are float32. Beside int8 weights the kernel rounds each input row
    to steps of ``max |x| / 32767``, or to fewer, as many as 32-bit sums over K leave room for (8191 at K = 8192).

    Raises:
        ValueError: shapes or dtypes that do not belong together.
    """
    shapes = f"x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} {weight.dtype}"
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or x.dtype != torch.float32:
        raise ValueError(f"few_rows_linear wants x (M, K) float32 and weight (N, K), got {shapes}")
    if weight.dtype not in ((torch.float32, torch.bfloat16) if scale is None else (torch.int8,)):
        raise ValueError(f"few_rows_linear wants int8 weights with a scale, or float ones without, got {shapes}")
    if native is not None and x.device.type == "cpu" and not native.wants_gradient(x, weight, scale, bias):
        return native.few_rows_linear(x, weight, scale, bias)
    return reference.few_rows_linear(x, weight, scale, bias)


@torch.no_grad()
def ctc_best_path(
    logp: Tensor,  # (B, F, C) float32, the last class is blank
    lengths: Tensor,  # (B,) int64, true frames
    target: Tensor,  # (B, N) int64, any value at padding
    target_lengths: Tensor,  # (B,) int64
) -> Tensor:  # (B, F) int64
    """Which token of ``target`` each frame belongs to on the best CTC path through it.

    -1 at blanks and padding, and in all frames of a row whose target does not fit them.
    """
    if native is not None and logp.device.type == "cpu":
        return native.ctc_best_path(logp, lengths, target, target_lengths)
    return reference.ctc_best_path(logp, lengths, target, target_lengths)


def depthwise(
    frames: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, 1, K)
    bias: Tensor | None = None,  # (C,)
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:  # (B, T', C)
    """A convolution over time, channel by channel, of frames as they lie."""
    if native is not None and stride == dilation == 1 and native.takes_frames(frames, weight):
        return native.depthwise(F.pad(frames, (0, 0, padding, padding)) if padding else frames, weight, bias)
    return reference.depthwise(frames, weight, bias, stride, padding, dilation)


FEW_ROWS = 128
"""Up to so many rows our product is the faster one (the last column of benchmarks/bench_few_rows.py)."""
TOKEN_ROWS = 256
"""Up to so many rows a token goes through all layers in one call: of more, calls are the smaller part of the time."""
MANY_WEIGHTS = 1 << 17
"""Fewer are read in less time than it takes to call an op of ours."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``; without gradient, and for a few rows of float32 on a CPU, by :func:`few_rows_linear`.

    PyTorch's own product has one thread for one row, and for a few rows reads the weights several times.
    """
    few = x.numel() <= FEW_ROWS * x.shape[-1] and weight.numel() >= MANY_WEIGHTS and x.device.type == "cpu"
    if not few or native is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if not x.dtype == weight.dtype == torch.float32 or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    return native.few_rows_linear(x.reshape(-1, x.shape[-1]), weight, None, bias).view(*x.shape[:-1], len(weight))


def or_empty(weight: Tensor | None) -> Tensor:
    """An empty tensor stands for a weight that a model does not have, in calls that run many layers."""
    return torch.zeros(0) if weight is None else weight.detach()


def weight_and_bias(layer: nn.Module | None) -> list[Tensor]:
    """Of a linear layer or a norm, as such calls want them."""
    return [or_empty(getattr(layer, name, None)) for name in ("weight", "bias")]


SMALL = 1 << 26
"""Bytes of weights that may lie in memory twice, where products read a copy faster."""


def laid_out(layers: Sequence[nn.Module | Tensor | None]) -> list[Tensor]:
    """Weights and biases of layers, one after the other, as calls of one token want them; tensors stay as they are.

    The linear layers of a small model lie in panels, a copy of their weights as they are now, with which a dozen rows
    take three quarters of the time (benchmarks/bench_few_rows.py).
    """
    linears = [each.weight for each in layers if isinstance(each, nn.Linear)]
    small = sum(weight.numel() * weight.element_size() for weight in linears) <= SMALL
    found = []
    for layer in layers:
        if isinstance(layer, Tensor):
            found.append(layer)
            continue
        weight, bias = weight_and_bias(layer)
        copied = small and isinstance(layer, nn.Linear) and native is not None and native.takes_panels(weight)
        found += [reference.panels(weight) if copied else weight, bias]
    return found


class Linear(nn.Linear):
    """``nn.Linear`` that computes by :func:`linear`: for layers that text goes through token by token."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(x, self.weight, self.bias)


def _check(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape:
        wanted = "q (B, H, U, D), k and v (B, H_kv, F, D)"
        raise ValueError(f"staircase_attention wants {wanted}, got {_shapes(q, k, v, visible)}")
    (batch, heads, queries, width), (kv_batch, kv_heads, _, kv_width) = q.shape, k.shape
    if batch != kv_batch or width != kv_width or heads % max(kv_heads, 1):
        raise ValueError(f"staircase_attention: batch, width or head groups differ: {_shapes(q, k, v, visible)}")
    if visible.shape != (batch, queries):
        wanted = f"(B, U) = {(batch, queries)}"
        raise ValueError(f"staircase_attention: visible must be {wanted}, got {_shapes(q, k, v, visible)}")
    if visible.dtype != torch.int32:
        raise ValueError(f"staircase_attention: visible must be int32, got {visible.dtype}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"staircase_attention: dtypes differ: q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if not q.device == k.device == v.device == visible.device:
        raise ValueError(f"staircase_attention: devices differ: q {q.device}, k {k.device}, visible {visible.device}")


def _shapes(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, visible {tuple(visible.shape)}"
