"""Sub-sampling by strided convolutions that see no future, as one network and stage by stage for streams.

Every stage has stride 2 and reads kernel - 1 frames of the past, so that L frames become L // 2 + 1, and frame f after
three stages has seen the feature frames up to 8 f and no later one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from espnet_bestow.encoders.few_rows import FewRowsLinear
from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.encoders.strided import StridedConv1d
from espnet_bestow.ops import native, or_empty, weight_and_bias
from espnet_bestow.ops.reference import panels


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


class Piece(NamedTuple):
    """Frames that one stream makes next."""

    start: int  # how many it has made before
    frames: int
    end: int | None  # feature frames of the whole audio where it has ended


class Stages:
    """A sub-sampling network taken apart, for streams that each hear the next piece of their audio.

    Args:
        enter: (B, T, 80) -> input of the first stage.
        stages: in order.
        leave: output of the last stage -> (B, F, D).
    """

    def __init__(
        self,
        enter: Callable[[torch.Tensor], torch.Tensor],
        stages: Sequence[Stage],
        leave: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.enter, self.stages, self.leave = enter, stages, leave
        self._sizes = [stage.past * math.prod(stage.input_shape) for stage in stages]

    @property
    def count(self) -> int:
        """How many halve the number of frames."""
        return len(self.stages)

    @property
    def remembered(self) -> int:
        """How many numbers a stream keeps between two calls."""
        return sum(self._sizes)

    def advance(
        self, feats: torch.Tensor, past: torch.Tensor, pieces: Sequence[Piece], block: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next frames of every stream.

        Args:
            feats: (B, T, 80), of each stream from the first one on that the first frame of its piece is made of, and
                zeros behind the last that there is.
            past: (B, remembered), zeros at first.
            pieces: B of them, of up to F frames.
            block: frames that are computed at a time, at most, for how many there are decides how sums are rounded;
                default: all of them.

        Returns:
            (B, F, D), of which those behind a piece or after the end mean nothing, and past.
        """
        feats, factor = self._in_place(feats, pieces), 1 << self.count
        found = []
        for number, part in enumerate(feats.split(factor * block if block else max(feats.shape[1], 1), 1)):
            done = number * (block or 0)
            now = [Piece(p.start + done, min(max(p.frames - done, 0), part.shape[1] // factor), p.end) for p in pieces]
            x, past = self._advance(part, past, now)
            found.append(x)
        return torch.cat(found, 1), past

    def _in_place(self, feats: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
        """(B, T, 80) -> (B, 2^n F, 80): before a recording's first frame stand zeros, and behind its last one."""
        factor = 1 << self.count
        x = feats.new_zeros(len(feats), factor * max(piece.frames for piece in pieces), feats.shape[2])
        for row, piece, own in zip(x, pieces, feats, strict=True):
            place = row[0 if piece.start else factor - 1 :]
            place[: len(own)] = own[: len(place)]
        return x

    def _advance(
        self, feats: torch.Tensor, past: torch.Tensor, pieces: Sequence[Piece]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of feats (B, 2^n F, 80), the last of the first 2^n of which makes the first frame of its piece."""
        x, kept = self.enter(feats), []
        factor, lengths = 1 << self.count, [piece.end for piece in pieces]
        for stage, before in zip(self.stages, past.split(self._sizes, 1), strict=True):
            channels, *others = stage.input_shape
            x = torch.cat([before.view(len(x), channels, stage.past, *others), x], dim=2)
            # A stage remembers inputs, not padding: zeros beyond the end are never needed again.
            ends = [factor * piece.frames for piece in pieces]
            kept.append(
                torch.stack([row[:, end : end + stage.past] for row, end in zip(x, ends, strict=True)]).flatten(1)
            )
            x = stage.apply(x)
            factor //= 2
            lengths = [length and length // 2 + 1 for length in lengths]
            x = _silence_outside(x, [factor * piece.start - (factor - 1) for piece in pieces], lengths)
        return self.leave(x), torch.cat(kept, 1)


class NativeStages:
    """The same of a :class:`CausalConv1dSubsampling` in one native call, with its weights as they are now.

    Args:
        subsampling: one that :meth:`fits`.
    """

    def __init__(self, subsampling: "CausalConv1dSubsampling"):
        convs: list[Any] = list(subsampling.layers)
        self.count = len(convs)
        self.eps = subsampling.norm.eps
        self.remembered = sum((conv.kernel_size[0] - 2) * conv.in_channels for conv in convs)
        # A window's frames lie one after the other, so its inputs are ordered by frame.
        weights = [(conv.weight.transpose(1, 2).flatten(1), conv.bias) for conv in convs]
        weights.append((subsampling.linear.weight, subsampling.linear.bias))
        laid_out = [each for weight, bias in weights for each in (panels(weight), or_empty(bias))]
        self.weights = [each.detach().contiguous() for each in (*laid_out, *weight_and_bias(subsampling.norm))]
        self.constants = self.weights, self.count, self.eps

    @staticmethod
    def fits(subsampling: "CausalConv1dSubsampling") -> bool:
        """Whether all of it is plain float32 on a CPU, and there is a kernel."""
        linears = [*subsampling.layers, subsampling.linear]
        return native is not None and all(native.takes_panels(each.weight) for each in linears)  # type: ignore[arg-type]

    def advance(
        self, feats: torch.Tensor, past: torch.Tensor, pieces: Sequence[Piece], block: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Stages`."""
        assert native is not None
        block = block or max(feats.shape[1], 1)
        bounds = torch.tensor([(start, count, -1 if end is None else end) for start, count, end in pieces])
        return native.conv_subsampling(feats, past, bounds, self.weights, self.count, block, self.eps)


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

    def stages(self) -> Stages | NativeStages:
        """See the module."""
        return NativeStages(self) if NativeStages.fits(self) else self.plain_stages()

    def plain_stages(self) -> Stages:
        """The same without native calls."""
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


def subsample(stages: Stages | NativeStages, feats: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Whole recordings (B, T, 80), (B,), what is behind them ignored -> (R, D), one after the other."""
    counts, longest = subsampled(lengths, stages.count), int(lengths.max())
    feats = feats[:, :longest].masked_fill(~valid_frames(lengths, longest)[..., None], 0.0)
    pieces = [Piece(0, count, length) for count, length in zip(counts.tolist(), lengths.tolist(), strict=True)]
    frames, _ = stages.advance(feats, feats.new_zeros(len(feats), stages.remembered), pieces)
    return frames[valid_frames(counts, frames.shape[1])]


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


def _silence_outside(x: torch.Tensor, first: Sequence[int], lengths: Sequence[int | None]) -> torch.Tensor:
    """Zeros outside the stream: x (B, C, n, ...) holds the frames from ``first`` on, of ``lengths`` if it has ended."""
    n = x.shape[2]
    low = [max(-each, 0) for each in first]
    high = [n if length is None else length - each for each, length in zip(first, lengths, strict=True)]
    if not any(low) and min(high) >= n:
        return x
    column = torch.arange(n, device=x.device)
    bounds = torch.tensor([low, high], device=x.device)[..., None]  # (2, B, 1)
    inside = (column >= bounds[0]) & (column < bounds[1])  # (B, n)
    return x * inside.view(len(inside), 1, n, *[1] * (x.dim() - 3))
