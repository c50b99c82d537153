"""The BESTOW connector: text embeddings are the queries, speech frames the keys and values (paper, Sec. 4.2).

Blocks 1, 2, 8 and cross-attention only (Table 4) are configurations of the same class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.attention import (
    CausalSelfAttention,
    CrossAttention,
    KeysValues,
    SpeechMemory,
    TextCache,
    WatchedSpeech,
    initialize,
)
from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.lined import LinedState
from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedCrossAttentionState, SeatedFrames, SeatedKeysValues
from espnet_bestow.connectors.token_step import ConnectorToken
from espnet_bestow.line import Line
from espnet_bestow.ops import Linear
from espnet_bestow.visibility import causal_mask


class BestowBlock(nn.Module):
    """Pre-LayerNorm block: causal self-attention, cross-attention to speech, ReLU feed-forward.

    Args:
        dim: D.
        num_heads: H of both attentions.
        ffn_mult: inner width of the feed-forward as a multiple of ``dim``.
        dropout: on each residual branch and inside the feed-forward.
        self_attention: False leaves it out (the "X-Attn only" row of Table 4).
    """

    def __init__(self, dim: int, num_heads: int, ffn_mult: int, dropout: float, self_attention: bool):
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = CausalSelfAttention(dim, num_heads) if self_attention else None
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            Linear(dim, ffn_mult * dim), nn.ReLU(), nn.Dropout(dropout), Linear(ffn_mult * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def read_speech(self, frames: Tensor) -> KeysValues:
        """Keys and values of speech (B, F, D), computed once per utterance."""
        return self.cross_attention.keys_values(frames)

    def forward(
        self, x: Tensor, speech: SpeechMemory, visible: Tensor, past: TextCache, allowed: Tensor | None
    ) -> tuple[Tensor, TextCache]:
        """x (B, U, D), visible (B, U), allowed (B, U, N) or None -> (B, U, D) and the grown self-attention cache."""
        if self.self_attention is not None and self.self_norm is not None:
            update, past = self.self_attention(self.self_norm(x), past, allowed)
            x = x + self.dropout(update)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), speech, visible))
        return x + self.dropout(self.ffn(self.ffn_norm(x))), past


@dataclass
class CrossAttentionState:
    """Speech keys and values (computed once per utterance) and the growing text caches."""

    speech: list[KeysValues]  # per block, B utterances
    text: list[KeysValues]  # per block, B' >= B text rows
    mask: Tensor = field(repr=False)  # (B', N) bool, real text positions so far

    def select(self, rows: Tensor) -> "CrossAttentionState":
        """The given text rows; the speech stays as it is, shared by the rows of an utterance."""
        text = [cache.select(rows) for cache in self.text]
        return CrossAttentionState(self.speech, text, self.mask.index_select(0, rows))

    def enter(self, mask: Tensor) -> Tensor:
        """Which positions U new ones, mask (B', U), may attend to: (B', U, N) bool."""
        self.mask = torch.cat([self.mask, mask], 1)
        return causal_mask(self.mask, new=mask.shape[1])

    def keep(self, block: int, grown: TextCache) -> None:
        """The text cache of a block after its new positions."""
        assert isinstance(grown, KeysValues)
        self.text[block] = grown

    def watch(self) -> WatchedSpeech:
        """From now on the last block's speech remembers how it is attended to."""
        self.speech[-1] = watched = self.speech[-1].watched()
        return watched


class CrossAttentionConnector(Connector):
    """``connector: cross_attention``. The defaults are the paper's numbers.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        dim: inner width D of the blocks.
        num_blocks: X.
        num_heads: H.
        ffn_mult: feed-forward width as a multiple of ``dim``.
        dropout: dropout rate.
        self_attention: False gives the cross-attention-only ablation.
        speech_projection: width of an additional Linear between encoder and connector; the authors' Table 4 has one,
            from the encoder's 512 to the LLM's 2048 (default: none).
        zero_init: start as the plain text LLM, by zeroing the last Linear.
    """

    attends = True

    def __init__(  # noqa: PLR0913 (the keys of connector_conf)
        self,
        text_dim: int,
        speech_dim: int,
        dim: int = 1024,
        num_blocks: int = 2,
        num_heads: int = 8,
        ffn_mult: int = 4,
        dropout: float = 0.1,
        self_attention: bool = True,
        speech_projection: int | None = None,
        zero_init: bool = False,
    ):
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"connector: num_blocks={num_blocks} must be >= 1")
        self.bridge: nn.Linear | nn.Identity = nn.Identity()
        if speech_projection:
            self.bridge = Linear(speech_dim, speech_projection)
        self.text_in = Linear(text_dim, dim)
        self.speech_in = Linear(speech_projection or speech_dim, dim)
        blocks = [BestowBlock(dim, num_heads, ffn_mult, dropout, self_attention) for _ in range(num_blocks)]
        self.blocks: Sequence[BestowBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(dim)
        self.text_out = Linear(dim, text_dim)
        initialize(self)
        if zero_init:
            nn.init.zeros_(self.text_out.weight)
            nn.init.zeros_(self.text_out.bias)

    def start(self, speech: Speech) -> CrossAttentionState:
        """Projects speech (B, F, D_enc) to the keys and values of every block, once per utterance."""
        frames = self.speech_in(self.bridge(speech.frames))
        projected = [block.read_speech(frames) for block in self.blocks]
        batch, heads, _, width = projected[0].keys.shape
        nothing = frames.new_zeros(batch, heads, 0, width)
        text = [KeysValues(nothing, nothing) for _ in self.blocks]
        return CrossAttentionState(projected, text, frames.new_zeros(batch, 0, dtype=torch.bool))

    def seated(self) -> SeatedCrossAttentionState:
        """See base class."""
        linears = [linear for linear in (self.bridge, self.speech_in) if not isinstance(linear, nn.Identity)]
        heard = SeatedFrames(linears[0].in_features)
        speech = [AbsorbedSpeech(block.cross_attention, linears, heard) for block in self.blocks]
        token = ConnectorToken(self, speech) if ConnectorToken.suits(self) else None
        return SeatedCrossAttentionState(heard, speech, [SeatedKeysValues() for _ in self.blocks], token)

    def forward(self, text: Tensor, mask: Tensor, visible: Tensor, state: ConnectorState | SeatedState) -> LLMInput:
        """text (B, U, D_llm), mask (B, U), visible (B, U) -> text embeddings that have read the speech."""
        assert isinstance(state, CrossAttentionState | SeatedCrossAttentionState)
        if isinstance(state, SeatedCrossAttentionState) and state.token is not None and state.token.takes(text):
            return LLMInput(text + state.token(text, visible, state), mask)
        if isinstance(state, CrossAttentionState) and state.mask.shape[1] == 0:
            line = Line(mask)
            if not line.full:
                update = self._update(line.lay(text), mask, line.in_rows(visible), LinedState(state, line))
                return LLMInput(text + line.batch(update), mask)
        return LLMInput(text + self._update(text, mask, visible, state), mask)

    def _update(
        self,
        text: Tensor,
        mask: Tensor,
        visible: Tensor,
        state: CrossAttentionState | SeatedCrossAttentionState | LinedState,
    ) -> Tensor:
        """What the blocks add to text (B, U, D_llm)."""
        allowed = state.enter(mask)
        x = self.text_in(text)
        for number, block in enumerate(self.blocks):
            x, grown = block(x, state.speech[number], visible, state.text[number], allowed)
            state.keep(number, grown)
        return self.text_out(self.norm(x))
