"""Linear layers for a few rows on a CPU, where reading the weights is all the work.

PyTorch's general product reads them at half the speed that memory gives or less (benchmarks/bench_streaming_encoder.py
has the figures). Which product is fastest was measured for each number of rows; all compute the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 1 << 18
"""Weights of a matrix from which on it is worth a packed copy; smaller ones stay in the cache."""

FEWEST_ROWS = 4
"""Rows up to which fewer take longer: with one or two, oneDNN and MKL choose kernels that read at half the speed."""

MOST_ROWS = 128
"""Rows from which on the general product is as fast."""


class FewRowsLinear:
    """``F.linear`` with fixed weights.

    Args:
        weight: (N, K).
        bias: (N,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight
        self.bias = bias
        self._packed = _packed(weight)

    @property
    def is_packed(self) -> bool:
        """Whether few rows are slow for it."""
        return self._packed is not None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, c, K) -> (B, c, N)."""
        shape = x.shape[:2]
        rows = shape[0] * shape[1]
        if self._packed is None or rows > MOST_ROWS:
            return F.linear(x, self.weight, self.bias)
        if rows < FEWEST_ROWS:
            x = F.pad(x.reshape(rows, -1), (0, 0, 0, FEWEST_ROWS - rows))
        out = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out[:rows].view(*shape, -1) if rows < FEWEST_ROWS else out


def _packed(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own order, as torch's compiler packs it; None where that does not exist or pay."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < LARGE:
        return None
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 16)
