"""A block of the cache-aware FastConformer over whole recordings, as transformers defines it and for less.

The library turns frames around for every convolution, leaves its depthwise one to a slow kernel, multiplies queries and
distances head by head and row by row, and scales and masks what could come scaled and masked. Here frames stay as they
lie in memory. Weights and results are the same; a CPU takes less time for them (benchmarks/bench_block.py,
docs/training_step.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.ops import depthwise


def block_pass(block: Any, x: Tensor, distances: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """What ``block`` makes of (B, F, D).

    Args:
        block: NemotronAsrStreamingEncoderBlock.
        x: (B, F, D).
        distances: (2 F - 1, D), the embedded distances F - 1 to -(F - 1).
        mask: (B, 1, F, F), 0 where a frame (first) sees another and -inf elsewhere; every frame sees one.
        padding: (B, F, 1) bool.
    """
    x = x.add(block.feed_forward1(block.norm_feed_forward1(x)), alpha=0.5)
    x = x + _attend(block.self_attn, block.norm_self_att(x), distances, mask)
    x = x + _convolve(block.conv, block.norm_conv(x), padding)
    x = x.add(block.feed_forward2(block.norm_feed_forward2(x)), alpha=0.5)
    return block.norm_out(x)


def _attend(attention: Any, x: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
    B, T, D = x.shape
    H, d = attention.bias_u.shape
    query = attention.q_proj(x).view(B, T, H, d)
    keys = attention.k_proj(x).view(B, T, H, d).permute(0, 2, 3, 1)  # (B, H, d, F)
    values = attention.v_proj(x).view(B, T, H, d).transpose(1, 2)
    relative = F.linear(distances, attention.relative_k_proj.weight * attention.scaling).view(-1, H, d)
    by_distance = torch.bmm(
        (query + attention.bias_v).permute(2, 0, 1, 3).reshape(H, B * T, d), relative.permute(1, 2, 0)
    )  # (H, B F, 2 F - 1)
    # Query i finds its distance to key j in column F - 1 - i + j: a view with rows one shorter.
    P = by_distance.shape[2]
    bias = by_distance.as_strided((B, H, T, T), (T * P, B * T * P, P - 1, 1), T - 1) + mask
    content = ((query + attention.bias_u) * attention.scaling).transpose(1, 2)  # (B, H, F, d)
    weights = (bias + content @ keys).softmax(-1)
    weights = F.dropout(weights, attention.attention_dropout, attention.training)
    return attention.o_proj((weights @ values).transpose(1, 2).reshape(B, T, D))


def _convolve(conv: Any, x: Tensor, padding: Tensor) -> Tensor:
    x = F.glu(_pointwise(conv.pointwise_conv1, x), dim=2).masked_fill(padding, 0.0)
    inner = conv.depthwise_conv
    x = depthwise(F.pad(x, (0, 0, inner.left_pad, 0)), inner.weight, inner.bias)
    return _pointwise(conv.pointwise_conv2, conv.activation(conv.norm(x)))


def _pointwise(conv: Any, x: Tensor) -> Tensor:
    """A convolution of kernel 1 over (B, F, C)."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)
