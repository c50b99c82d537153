"""Conformer layers behind an encoder, whose frames know where they are: without positions of their own.

transformers' and ESPnet's have positions, and batch norms in which utterances depend on each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.connectors.attention import MultiHeadProjections


def some_frame(valid: Tensor) -> Tensor:
    """valid (B, F) with at least the first frame of every row: nothing to hear is no NaN."""
    return valid | (torch.arange(valid.shape[1], device=valid.device) == 0)


class FeedForward(nn.Sequential):
    """Norm, wide layer, SiLU, narrow layer.

    Args:
        dim: D.
        mult: inner width as a multiple of it.
        dropout: dropout rate.
    """

    def __init__(self, dim: int, mult: int, dropout: float):
        inner = nn.Linear(dim, mult * dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(mult * dim, dim)
        super().__init__(nn.LayerNorm(dim), *inner, nn.Dropout(dropout))


class SelfAttention(MultiHeadProjections):
    """Every frame sees all frames of its utterance."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, F, D), valid (B, F) -> (B, F, D)."""
        q, own = self.split(self.query(x)), self.keys_values(x)
        out = F.scaled_dot_product_attention(q, own.keys, own.values, attn_mask=valid[:, None, None])
        return self.out(self.merge(out))


class ConvolutionModule(nn.Module):
    """Gate, convolution over time, norm, SiLU. A layer norm, so that an utterance does not depend on its batch.

    Args:
        dim: D.
        kernel_size: frames, odd.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd")
        self.into = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, F, D), valid (B, F) -> (B, F, D)."""
        gated = F.glu(self.into(x), -1) * valid[..., None]  # silence behind the end
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(self.norm(mixed)))


class ConformerLayer(nn.Module):
    """Half a feed-forward, self-attention, convolution, half a feed-forward, norm.

    Args:
        dim: D.
        num_heads: of the attention.
        ffn_mult: inner width of the feed-forwards as a multiple of ``dim``.
        kernel_size: of the convolution.
        dropout: on each residual branch and inside the feed-forwards.
    """

    def __init__(self, dim: int, num_heads: int, ffn_mult: int, kernel_size: int, dropout: float):
        super().__init__()
        self.first, self.second = FeedForward(dim, ffn_mult, dropout), FeedForward(dim, ffn_mult, dropout)
        self.attention_norm, self.convolution_norm, self.norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = SelfAttention(dim, num_heads)
        self.convolution = ConvolutionModule(dim, kernel_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, F, D), valid (B, F) bool with a true frame in each row -> (B, F, D)."""
        x = x + 0.5 * self.first(x)
        x = x + self.dropout(self.attention(self.attention_norm(x), valid))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), valid))
        return self.norm(x + 0.5 * self.second(x))
