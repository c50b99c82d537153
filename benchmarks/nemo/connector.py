"""The BESTOW connector as NVIDIA NeMo computes it, with our weights. Runs where NeMo 3.0 is installed."""

import torch
from nemo.collections.asr.modules.transformer.transformer_decoders import TransformerDecoder
from torch import Tensor, nn

from espnet_bestow.connectors import CrossAttentionConnector
from tests.golden.names import nemo_connector_name


class NemoConnector(nn.Module):
    """NeMo's TransformerDecoder between two Linears and around a residual, a token at a time.

    Its cache holds hidden states: keys and values of all earlier text and of all speech are projected at every step.

    Args:
        ours: whose sizes and weights it takes.
    """

    def __init__(self, ours: CrossAttentionConnector):
        super().__init__()
        dim, text_dim = ours.text_in.out_features, ours.text_in.in_features
        inner, heads = ours.blocks[0].ffn[0].out_features, ours.blocks[0].cross_attention.num_heads
        self.text_in = nn.Linear(text_dim, dim)
        self.speech_in = nn.Linear(ours.speech_in.in_features, dim)
        self.decoder = TransformerDecoder(len(ours.blocks), dim, inner, heads, pre_ln=True)
        self.text_out = nn.Linear(dim, text_dim)
        self.load_state_dict({nemo_connector_name(name): value for name, value in ours.state_dict().items()})
        self.eval()
        self.mems: list[Tensor] | None = None

    def step(self, text: Tensor, frames: Tensor) -> Tensor:
        """text (B, U, D_llm) and projected frames (B, F, D) -> (B, U, D_llm); only the first U may exceed 1."""
        x = self.text_in(text)
        seen = torch.ones(frames.shape[:2])
        out = self.decoder(x, torch.ones(x.shape[:2]), frames, seen, self.mems, return_mems=True)
        # NeMo 3.0 returns attention scores beside the hidden states.
        self.mems = out[0] if isinstance(out, tuple) else out
        return text + self.text_out(self.mems[-1][:, -text.shape[1] :])
