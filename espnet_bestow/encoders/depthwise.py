"""Depthwise convolutions over time that are quick on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn


def convolve_frames(
    frames: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> torch.Tensor:
    """Depthwise convolution of (B, T, C) with weight (C, 1, K): frames are pixels of C channels, all in one row."""
    pixels = frames.mT[:, :, None].contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
    out = F.conv2d(pixels, weight[:, :, None], bias, (1, stride), (0, padding), (1, dilation), frames.shape[2])
    return out[:, :, 0].mT


class ChannelsLastConv1d(nn.Conv1d):
    """A depthwise ``nn.Conv1d`` that computes on a CPU with channels last, as frames lie in memory anyway.

    oneDNN has no quick kernel for one with channels first: forward it takes two to ten times as long
    (benchmarks/bench_depthwise.py). Weights and results are the same.
    """

    @classmethod
    def of(cls, conv: nn.Conv1d) -> "ChannelsLastConv1d":
        """The same convolution, with the same weights."""
        quick = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            device="meta",  # draws nothing: seeds must not depend on this
        )
        quick.weight, quick.bias = conv.weight, conv.bias
        return quick.train(conv.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T')."""
        if input.device.type != "cpu":
            return super().forward(input)
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        return convolve_frames(input.mT, self.weight, self.bias, stride, padding, dilation).mT


def quicken_depthwise(model: nn.Module) -> None:
    """Puts :class:`ChannelsLastConv1d` in the place of every depthwise convolution over time; weights stay the same."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if _is_depthwise(child):
                setattr(parent, name, ChannelsLastConv1d.of(child))  # type: ignore[arg-type]


def _is_depthwise(module: nn.Module) -> bool:
    # Subclasses have a forward of their own.
    return (
        type(module) is nn.Conv1d
        and module.groups == module.in_channels == module.out_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
