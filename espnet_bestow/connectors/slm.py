"""SLM's adapter between a frozen speech encoder and a frozen LLM: most frames are thrown away, a few layers follow.

Its paper names the parts and not all numbers; the defaults are ours where it is silent.
"""

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.attention import initialize
from espnet_bestow.connectors.base import Speech
from espnet_bestow.connectors.conformer import FeedForward, SelfAttention, some_frame
from espnet_bestow.connectors.prepend import Prepending
from espnet_bestow.encoders.lengths import valid_frames


class TransformerLayer(nn.Module):
    """Pre-LayerNorm self-attention and feed-forward.

    Args:
        dim: D.
        num_heads: of the attention.
        ffn_mult: inner width of the feed-forward as a multiple of ``dim``.
        dropout: on both residual branches and inside the feed-forward.
    """

    def __init__(self, dim: int, num_heads: int, ffn_mult: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.ffn = FeedForward(dim, ffn_mult, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, F, D), valid (B, F) bool with a true frame in each row -> (B, F, D)."""
        x = x + self.dropout(self.attention(self.norm(x), valid))
        return x + self.ffn(x)


class SLMConnector(Prepending):
    """``connector: slm``.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        one_of: of so many neighbouring frames one is kept: in training any of them, by chance, else the middle one.
        num_layers: transformer layers, at the encoder's width.
        num_heads: of their attention.
        ffn_mult: inner width of their feed-forwards as a multiple of ``speech_dim``.
        dropout: dropout rate.
    """

    def __init__(
        self,
        text_dim: int,
        speech_dim: int,
        one_of: int = 4,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_mult: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        if one_of < 1:
            raise ValueError(f"connector: one_of={one_of} must be >= 1")
        self.one_of = one_of
        layers = [TransformerLayer(speech_dim, num_heads, ffn_mult, dropout) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(speech_dim)
        self.out = nn.Linear(speech_dim, text_dim)
        initialize(self)

    def positions(self, frames: int) -> int:
        """See base class."""
        return -(-frames // self.one_of)

    def adapt(self, speech: Speech) -> tuple[Tensor, Tensor]:
        """See base class."""
        x = speech.frames.gather(1, self._kept(speech)[..., None].expand(-1, -1, speech.frames.shape[2]))
        valid = valid_frames(-(-speech.lengths // self.one_of), x.shape[1])
        heard = some_frame(valid)
        for layer in self.layers:
            x = layer(x, heard)
        return self.out(self.norm(x)), valid

    def _kept(self, speech: Speech) -> Tensor:
        """Which frames are, (B, F'): of the last few, which may be fewer, one that there is."""
        rows, frames, _ = speech.frames.shape
        firsts = torch.arange(0, frames, self.one_of, device=speech.frames.device)  # (F',)
        if self.training:
            which = torch.randint(self.one_of, (rows, len(firsts)), device=firsts.device)
        else:
            which = torch.full((rows, len(firsts)), self.one_of // 2, device=firsts.device)
        return (firsts + which).minimum((speech.lengths.to(firsts.device)[:, None] - 1).clamp(min=0))
