"""Linear layers for a few rows on a CPU, where reading the weights is all the work.

PyTorch's general product reads them at half the speed that memory gives or less as soon as there are two rows; ours
reads them as one stream, and up to four rows cost what one does (benchmarks/bench_few_rows.py compares).
"""

import mmap
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.ops import native
from espnet_bestow.ops.reference import panels

MOST_ROWS = 2048
"""Rows from which on the general product is as fast."""

HUGE_PAGE = 1 << 21
"""Bytes."""


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
        self.panels = _in_huge_pages(panels(self.weight)) if compiled else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        rows = x.numel() // x.shape[-1]
        if native is None or self.panels is None or rows > MOST_ROWS:
            return F.linear(x, self.weight, self.bias)
        return native.panel_linear(x, self.panels, self.bias)


def _in_huge_pages(x: Tensor) -> Tensor:
    """A copy in pages of 2 MB where the system has them: by pages of 4 KB, memory is read a sixth slower."""
    if x.nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return x
    area = mmap.mmap(-1, x.nbytes + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without them
        area.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(area, dtype=x.dtype)  # keeps the area alive
    start = -memory.data_ptr() % HUGE_PAGE // x.element_size()
    return memory[start : start + x.numel()].view(x.shape).copy_(x)
