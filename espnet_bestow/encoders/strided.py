"""Strided convolutions over time that are quick on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn


class StridedConv1d(nn.Conv1d):
    """An ``nn.Conv1d`` that computes on a CPU as one matrix product over its windows.

    A few hundred frames take oneDNN four times as long, forward and backward, and every new length costs it a kernel
    compiled anew. Weights and results are the same.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C', T')."""
        if input.device.type != "cpu":
            return super().forward(input)
        (kernel,), (stride,), padding = self.kernel_size, self.stride, int(self.padding[0])
        count = (input.shape[2] + 2 * padding - kernel) // stride + 1
        if count < 1:
            return super().forward(input)  # says what is wrong
        # A window is some whole strides and a rest of the next one: frames as they lie, nothing is gathered.
        strides = count + kernel // stride
        frames = F.pad(input.mT, (0, 0, padding, strides * stride - input.shape[2] - padding))  # (B, T, C)
        by_stride = frames.reshape(len(input), strides, stride * self.in_channels)
        parts = [by_stride[:, at : at + count] for at in range(kernel // stride)]
        if kernel % stride:
            parts.append(by_stride[:, kernel // stride :, : kernel % stride * self.in_channels])
        weight = self.weight.transpose(1, 2).flatten(1)  # a window's numbers are ordered by frame
        return F.linear(torch.cat(parts, 2), weight, self.bias).mT
