"""Sub-sampling by strided convolutions that see no future, as one network and stage by stage for streams.

Every stage has stride 2 and reads kernel - 1 frames of the past, so that L frames become L // 2 + 1, and frame f after
three stages has seen the feature frames up to 8 f and no later one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from espnet_bestow.encoders.few_rows import FewRowsLinear
from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.encoders.strided import StridedConv1d


class Stage(NamedTuple):
    """One strided convolution with its activation, without padding in time.

    Attributes:
        apply: (B, C, past + 2 n, ...) -> (B, C', n, ...).
        past: frames of its input that a stream keeps between two calls.
        input_shape: C, ... of its input.
    """

    apply: Callable[[torch.Tensor], torch.Tensor]
    past: int
    input_shape: tuple[int, ...]


class Stages(NamedTuple):
    """A sub-sampling network taken apart."""

    enter: Callable[[torch.Tensor], torch.Tensor]  # (B, T, 80) -> input of the first stage
    stages: Sequence[Stage]
    leave: Callable[[torch.Tensor], torch.Tensor]  # output of the last stage -> (B, F, D)


class CausalConv1dSubsampling(nn.Module):
    """``subsampling: conv1d``: convolutions over time only, all feature bins at once.

    The causal sister of ``preencoder: conv1d``, cheaper than 2-D convolutions in a small model.

    Args:
        input_size: feature bins.
        output_size: width D.
        num_layers: convolutions of stride 2.
        kernel_size: of the first one; the others have 3.
    """

    def __init__(self, input_size: int, output_size: int, num_layers: int = 3, kernel_size: int = 5):
        super().__init__()
        widths = [input_size] + [output_size] * num_layers
        kernels = [kernel_size] + [3] * (num_layers - 1)
        self.layers = nn.ModuleList(
            StridedConv1d(a, b, k, stride=2) for a, b, k in zip(widths, widths[1:], kernels, strict=False)
        )
        self.past = [kernel - 2 for kernel in kernels]
        self.linear = nn.Linear(output_size, output_size)
        self.norm = nn.LayerNorm(output_size)

    def forward(self, feats: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, T, 80) with 0 at padding, (B, T) bool -> (B, F, D)."""
        x, lengths = feats.transpose(1, 2), valid.sum(-1)
        for past, layer in zip(self.past, self.layers, strict=True):
            x = F.gelu(layer(F.pad(x, (past + 1, 1))))
            lengths = lengths // 2 + 1
            x = x * valid_frames(lengths, x.shape[2])[:, None]
        return self.norm(self.linear(x.transpose(1, 2)))

    def stages(self) -> Stages:
        """See the module."""
        return Stages(
            enter=lambda feats: feats.transpose(1, 2),
            stages=[_conv1d_stage(layer) for layer in self.layers],
            leave=lambda x: self.norm(self.linear(x.transpose(1, 2))),
        )


def dw_striding_stages(subsampling: Any, bins: int) -> Stages:
    """transformers' depthwise-separable sub-sampling, taken apart."""
    linear = FewRowsLinear(subsampling.linear.weight, subsampling.linear.bias)
    stages = [_conv2d_stage([subsampling.conv_in], bins)]
    for layer in subsampling.layers:
        bins = bins // 2 + 1
        stages.append(_conv2d_stage([layer.depthwise_conv, layer.pointwise_conv], bins))
    return Stages(
        enter=lambda feats: feats[:, None],
        stages=stages,
        leave=lambda x: linear(x.transpose(1, 2).flatten(2)),
    )


def subsampled(lengths: Any, num_layers: int = 3) -> Any:
    """Frames after ``num_layers`` stages, of an int or a tensor of ints."""
    for _ in range(num_layers):
        lengths = lengths // 2 + 1
    return lengths


def _conv1d_stage(layer: Any) -> Stage:
    return Stage(lambda x: F.gelu(layer(x)), layer.kernel_size[0] - 2, (layer.in_channels,))


def _conv2d_stage(layers: Sequence[Any], bins: int) -> Stage:
    strided = layers[0]
    kernel = strided.kernel_size[0]

    def apply(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (kernel - 1, 1))
        x = F.conv2d(x, strided.weight, strided.bias, stride=2, groups=strided.groups)
        for pointwise in layers[1:]:
            x = pointwise(x)
        return x.relu()

    return Stage(apply, kernel - 2, (strided.in_channels, bins))
