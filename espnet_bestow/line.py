"""The real positions of a padded batch in one line, so that nothing is computed for padding.

Texts of a batch differ in length: with the instructions and answers of a mixed batch a quarter of its positions are
padding. Linear layers, norms and gates treat every position alone and work on the line; attention needs rows again.
There each row's real positions come first, and whoever sees what came before sees no padding.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from espnet_bestow.ops import causal_attention


class Line:
    """Where the positions of a batch stand in the line.

    Args:
        mask: (B, U) bool, true at real positions; padding may stand anywhere.
    """

    def __init__(self, mask: Tensor):
        self._shape = mask.shape
        self._at = mask.flatten().nonzero()[:, 0]  # (N,) of B * U
        self._column = mask.cumsum(1).flatten()[self._at] - 1  # (N,) within its row's real positions
        self._counts = mask.sum(1)  # (B,)

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return len(self._at) == self._shape.numel()

    @property
    def numbers(self) -> Tensor:
        """(1, N), of each position within its row."""
        return self._column[None]

    @cached_property
    def mask(self) -> Tensor:
        """(B, W) bool, the real positions of rows, which come first."""
        width = int(self._counts.max())
        return torch.arange(width, device=self._counts.device) < self._counts[:, None]

    @cached_property
    def _before(self) -> Tensor:
        return torch.where(self.mask, self.mask.cumsum(1), 0).to(torch.int32)  # (B, W), each position counts itself

    @cached_property
    def _seat(self) -> Tensor:
        return self._at // self._shape[1] * self.mask.shape[1] + self._column  # (N,) of B * W

    def lay(self, x: Tensor) -> Tensor:
        """x (B, U, ...) -> (1, N, ...)."""
        return _Take.apply(x.flatten(0, 1), self._at)[None]

    def batch(self, line: Tensor) -> Tensor:
        """line (1, N, ...) -> (B, U, ...), 0 at padding."""
        return _Put.apply(line[0], self._at, self._shape.numel()).unflatten(0, self._shape)

    def rows(self, heads: Tensor) -> Tensor:
        """heads (1, H, N, D) -> (B, H, W, D), 0 at padding."""
        rows = _Put.apply(heads[0].transpose(0, 1), self._seat, self.mask.numel())  # (B * W, H, D)
        return rows.unflatten(0, self.mask.shape).transpose(1, 2)

    def heads(self, rows: Tensor) -> Tensor:
        """rows (B, H, W, D) -> (1, H, N, D)."""
        return _Take.apply(rows.transpose(1, 2).flatten(0, 1), self._seat).transpose(0, 1)[None]

    def in_rows(self, x: Tensor) -> Tensor:
        """x (B, U) -> (B, W), 0 at padding."""
        return _Put.apply(x.flatten()[self._at], self._seat, self.mask.numel()).view(self.mask.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Causal self-attention of q (1, H, N, D) to rows k and v (B, H_kv, W, D) -> (1, H, N, D)."""
        return self.heads(causal_attention(self.rows(q), k, v, self._before, scale))


class _Take(torch.autograd.Function):
    """Chosen entries, each once: the gradient is written, where index_select would add it up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> Tensor:
        """x (M, ...), at (N,) -> (N, ...)."""
        ctx.save_for_backward(at)
        ctx.size = len(x)
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(N, ...) -> (M, ...)."""
        return _Put.apply(grad, *ctx.saved_tensors, ctx.size), None


class _Put(torch.autograd.Function):
    """Entries of a larger tensor that is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor, size: int) -> Tensor:
        """x (N, ...), at (N,) -> (size, ...)."""
        ctx.save_for_backward(at)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, at, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(size, ...) -> (N, ...)."""
        return _Take.apply(grad, *ctx.saved_tensors), None, None
