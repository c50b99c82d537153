"""First weights of FastConformers that no checkpoint fills."""

from typing import Any

import torch
from torch import nn

BRANCH = 0.1
"""What is left of the last layer of every branch."""


@torch.no_grad()
def draw_weights(encoder: Any) -> None:
    """Draws all weights of a transformers FastConformer anew, for training from nothing.

    The library draws every weight with std 0.02. Behind the small kernels of the sub-sampling that leaves 1e-7 of the
    signal, less than the epsilon of the norms; PyTorch's own way keeps it. And the four branches of a block add little
    to begin with, so that the loss sees the sub-sampling through all blocks: CTC then takes fewer steps.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.reset_parameters()
    for block in encoder.layers:
        attention, convolution = block.self_attn.o_proj, block.conv.pointwise_conv2
        for last in (block.feed_forward1.linear2, attention, convolution, block.feed_forward2.linear2):
            for weights in last.parameters():
                weights.mul_(BRANCH)
