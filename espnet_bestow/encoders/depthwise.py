"""Depthwise convolutions over time that are quick on a CPU."""

import torch
from torch import nn

from espnet_bestow.ops import depthwise


class ChannelsLastConv1d(nn.Conv1d):
    """A depthwise ``nn.Conv1d`` that computes on a CPU with channels last, as frames lie in memory anyway.

    oneDNN has no quick kernel for one (benchmarks/bench_depthwise.py). Weights and results are the same.
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
        return depthwise(input.mT, self.weight, self.bias, stride, padding, dilation).mT


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
