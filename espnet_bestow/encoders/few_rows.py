"""Linear layers for a few rows on a CPU, where reading the weights is all the work.

PyTorch's general product reads them at half the speed that memory gives or less; ours at that speed, and up to some
fourteen rows cost little more than one (benchmarks/bench_few_rows.py has the figures).
"""

import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.ops import native
from espnet_bestow.ops.reference import panels

MOST_ROWS = 128
"""Rows from which on the general product is as fast."""


class FewRowsLinear:
    """``F.linear`` with fixed weights.

    Args:
        weight: (N, K).
        bias: (N,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        compiled = native is not None and native.takes_panels(weight)
        self._panels = panels(self.weight) if compiled else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        rows = x.numel() // x.shape[-1]
        if self._panels is None or rows > MOST_ROWS:
            return F.linear(x, self.weight, self.bias)
        return native.panel_linear(x, self._panels, self.bias)
