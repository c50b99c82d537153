"""Smaller weights for writing on a CPU: a step of one token costs what it takes to read the weights once.

Weights become bfloat16, or 8-bit integers with a scale per output; inputs, outputs and sums stay as they are.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from espnet_bestow.ops import Linear, few_rows_linear

Precision = Literal["bf16", "int8"]


class WeightOnlyLinear(nn.Module):
    """``nn.Linear`` for inference, with rounded weights.

    Each weight is off by at most 1/256 of itself (bf16), or 1/254 of the largest of its row (int8).

    Args:
        linear: what it replaces.
        precision: of the weights.
    """

    rounded: Tensor  # (N, K) bfloat16 or int8
    scale: Tensor | None  # (N) of int8 weights
    bias: Tensor | None  # (N)

    def __init__(self, linear: nn.Linear, precision: Precision):
        super().__init__()
        weight, scale = linear.weight.detach(), None
        if precision == "int8":
            scale = weight.float().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            weight = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.register_buffer("rounded", weight.contiguous() if scale is not None else weight.bfloat16().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    @property
    def weight(self) -> Tensor:
        """(N, K) float32: what the rounded weights stand for."""
        return self.rounded.float() if self.scale is None else self.rounded.float() * self.scale[:, None]

    @property
    def in_features(self) -> int:
        """K."""
        return self.rounded.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        out = few_rows_linear(rows, self.rounded, self.scale, self.bias)
        return out.view(*x.shape[:-1], len(self.rounded)).to(x.dtype)

    def extra_repr(self) -> str:
        """As of nn.Linear."""
        outputs, inputs = self.rounded.shape
        return f"in_features={inputs}, out_features={outputs}, weights={self.rounded.dtype}"


def quantize(module: nn.Module, precision: Precision) -> None:
    """Replaces every ``nn.Linear`` below ``module``, in place.

    Raises:
        ValueError: an unknown precision, or weights that are not on a CPU (elsewhere nothing here is faster).
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: weights become {' or '.join(get_args(Precision))}")
    for name, child in module.named_children():
        # What else inherits from nn.Linear does something else with its weights.
        if not isinstance(child, nn.Linear) or type(child) not in (nn.Linear, Linear):
            quantize(child, precision)
        elif child.weight.device.type != "cpu":
            raise ValueError(f"{precision} weights are for CPUs; {name} is on {child.weight.device}")
        else:
            setattr(module, name, WeightOnlyLinear(child, precision))
