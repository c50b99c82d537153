"""Relative-position keys of transformers' conformers, computed once per batch."""

from typing import Any

import torch
from torch import nn


class SharedRelativeKeys(nn.Linear):
    """Projects the relative positions once per batch instead of once per row."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(B, 2F - 1, D), equal rows -> (B, 2F - 1, D)."""
        return super().forward(positions[:1]).expand(positions.shape[0], -1, -1)


def share_relative_keys(encoder: nn.Module) -> None:
    """Puts :class:`SharedRelativeKeys`, with the same weights, into every block of a transformers conformer."""
    config: Any = encoder.config
    # Dropout on the positions would make the rows differ.
    if config.dropout_positions > 0:
        return
    for block in encoder.layers:  # type: ignore[union-attr]
        attention: Any = block.self_attn
        own = attention.relative_k_proj
        shared = SharedRelativeKeys(own.in_features, own.out_features, bias=False)
        shared.weight = own.weight
        attention.relative_k_proj = shared
