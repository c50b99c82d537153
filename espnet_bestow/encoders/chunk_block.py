"""A block of the cache-aware FastConformer with its weights laid out for chunks of few frames."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from espnet_bestow.encoders.few_rows import FewRowsLinear
from espnet_bestow.ops import depthwise, or_empty, weight_and_bias

SPARE = 15
"""Columns of zeros behind the keys of distances, of which the native call reads whole vectors."""


class ChunkBlock:
    """One conformer block with its weights laid out for a chunk of few frames.

    Args:
        block: transformers'.
        distances: (P, D) embedded distances, the largest first.
        left, chunk: frames of the past and of a chunk when it is called; what :meth:`weights` gives knows neither.
    """

    BEGINNING = 10
    """So many of the weights concern each frame alone, until frames look at each other."""

    def __init__(self, block: Any, distances: Tensor, left: int, chunk: int):
        attention = block.self_attn
        self.block = block
        self.left = left
        self.chunk = chunk
        self.heads = attention.bias_u.shape[0]
        self.scaling = attention.scaling
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        has_bias = attention.q_proj.bias is not None
        self.qkv = FewRowsLinear(
            torch.cat([each.weight for each in projections]),
            torch.cat([each.bias for each in projections]) if has_bias else None,
        )
        self.out = _few_rows(attention.o_proj)
        self.feed_forward1 = _FeedForward(block.feed_forward1)
        self.feed_forward2 = _FeedForward(block.feed_forward2)
        self.pointwise1 = _few_rows(block.conv.pointwise_conv1)
        self.pointwise2 = _few_rows(block.conv.pointwise_conv2)
        self.bias_u = attention.bias_u.flatten().clone()
        self.bias_v = attention.bias_v.flatten().clone()
        self.relative = self.of_distances(distances)
        self.depthwise = block.conv.depthwise_conv
        self.kernel = self.depthwise.kernel_size[0]
        self.taps = self.depthwise.weight[:, 0].t().contiguous()  # (kernel, D)

    def __call__(self, x: Tensor, window: Tensor, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The block's frames and the last inputs of its convolution.

        Args:
            x: (B, chunk, D).
            window: (B, left + chunk, 2 D) keys and values; those of the chunk are written into it.
            past: (B, kernel - 1, D) earlier inputs of the convolution.
            mask: (B, 1, 1, left + chunk) or None.
        """
        block = self.block
        x = x.add(self.feed_forward1(block.norm_feed_forward1(x)), alpha=0.5)
        x = x + self._attend(block.norm_self_att(x), window, mask)
        convolved, past = self._convolve(block.norm_conv(x), past)
        x = x + convolved
        x = x.add(self.feed_forward2(block.norm_feed_forward2(x)), alpha=0.5)
        return block.norm_out(x), past

    def of_distances(self, distances: Tensor) -> Tensor:
        """Keys (H, d, P + SPARE) of embedded distances (P, D), already divided by sqrt(d)."""
        relative = self.block.self_attn.relative_k_proj(distances[None])[0].unflatten(-1, (self.heads, -1))
        return F.pad((relative * self.scaling).permute(1, 2, 0), (0, SPARE))

    def weights(self) -> list[Tensor] | None:
        """As the native call wants them, from the first norm to the last; None where it does not take them."""
        block, first, second = self.block, self.feed_forward1, self.feed_forward2
        activations = block.conv.activation, first.activation, second.activation
        if not all(isinstance(each, nn.SiLU | SiLUActivation) for each in activations):
            return None
        taps = [self.taps, or_empty(self.depthwise.bias)]
        norms = (
            block.norm_feed_forward1,
            block.norm_self_att,
            block.norm_conv,
            block.conv.norm,
            block.norm_feed_forward2,
        )
        first_norm, own_norm, conv_norm, inner_norm, second_norm = map(weight_and_bias, norms)
        found = [
            *first_norm, *_panels(first.linear1), *_panels(first.linear2),
            *own_norm, *_panels(self.qkv), self.bias_u, self.bias_v, self.relative, *_panels(self.out),
            *conv_norm, *_panels(self.pointwise1), *taps, *inner_norm, *_panels(self.pointwise2),
            *second_norm, *_panels(second.linear1), *_panels(second.linear2), *weight_and_bias(block.norm_out),
        ]  # fmt: skip
        return None if any(each is None for each in found) else [each for each in found if each is not None]

    def _attend(self, x: Tensor, window: Tensor, mask: Tensor | None) -> Tensor:
        B, c, D = x.shape
        W, H = self.left + c, self.heads
        qkv = self.qkv(x)  # (B, c, 3 D)
        window[:, self.left :] = qkv[..., D:]
        keys, values = window.unflatten(2, (2, H, -1)).permute(2, 0, 3, 1, 4)  # (B, H, W, d) each
        query = qkv[..., :D]
        by_place = (query + self.bias_v).reshape(B * c, H, -1).transpose(0, 1)  # (H, B c, d)
        scores = torch.bmm(by_place, self.relative)  # (H, B c, W + c - 1 + SPARE)
        # Query i finds its distance to key j in column c - 1 - i + j: a view with rows one shorter.
        P = scores.shape[-1]
        bias = scores.as_strided((B, H, c, W), (c * P, B * c * P, P - 1, 1), c - 1)
        if mask is not None:
            bias = bias + mask
        content = (query + self.bias_u).unflatten(2, (H, -1)).transpose(1, 2)  # (B, H, c, d)
        out = F.scaled_dot_product_attention(content, keys, values, bias, scale=self.scaling)
        return self.out(out.transpose(1, 2).reshape(B, c, D))

    def _convolve(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        conv = self.block.conv
        x = F.glu(self.pointwise1(x))
        window = torch.cat([past, x], dim=1)  # (B, kernel - 1 + c, D)
        x = depthwise(window, self.depthwise.weight, self.depthwise.bias)
        x = conv.activation(conv.norm(x))
        return self.pointwise2(x), window[:, self.chunk :]


class _FeedForward:
    """linear, activation, linear."""

    def __init__(self, module: Any):
        self.linear1 = _few_rows(module.linear1)
        self.linear2 = _few_rows(module.linear2)
        self.activation = module.activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))


def _panels(linear: FewRowsLinear) -> list[Tensor | None]:
    return [linear.panels, or_empty(linear.bias)]


def _few_rows(module: Any) -> FewRowsLinear:
    """Of a Linear or of a convolution of kernel 1."""
    return FewRowsLinear(module.weight.flatten(1), module.bias)
