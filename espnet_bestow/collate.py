"""Batches on their way from the processes that load them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Batch = tuple[list[str], dict[str, Tensor]]
_SMALL = 1 << 16
"""Bytes that are sooner copied than asked for."""


class SmallByValue:
    """A collate function whose small tensors become arrays again.

    A tensor lies in memory that the loading process shares, and the training process must ask that busy process for
    each one. An array travels with the message, and ESPnet's trainer makes a tensor of it. A batch has a dozen of them.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Batch]):
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> tuple[list[str], dict[str, Tensor | np.ndarray]]:
        """Row ids; name -> tensor, or array where it is small."""
        ids, batch = self.collate(rows)
        return ids, {name: x.numpy() if x.nbytes <= _SMALL else x for name, x in batch.items()}
