"""Cross-attention in the LLM's own layers (Flamingo, Whisper-LLaMA), whose cost the paper argues against.

Before a layer of the LLM its hidden states read the speech, and a feed-forward follows; both enter through a gate. The
text that the LLM gets is as long as it was, and every position sees what is visible to it, so this streams too; but the
layers are as many and as wide as the LLM's own, and where a token looks is known only once the LLM has run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.attention import CrossAttention, KeysValues, SpeechMemory, WatchedSpeech, initialize
from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedFrames, SeatedSpeechState
from espnet_bestow.ops import Linear


class ReadingLayer(nn.Module):
    """What stands before one layer of the LLM.

    Args:
        dim: D_llm.
        speech_dim: D_enc.
        num_heads: H.
        ffn_mult: inner width of the feed-forward as a multiple of ``dim``; 0 leaves it out.
        dropout: on both residual branches and inside the feed-forward.
        gate: where the gates, tanh of one number each, start.
    """

    def __init__(self, dim: int, speech_dim: int, num_heads: int, ffn_mult: int, dropout: float, gate: float):
        super().__init__()
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads, speech_dim)
        self.gate = nn.Parameter(torch.tensor([gate]))
        self.dropout = nn.Dropout(dropout)
        self.ffn: nn.Sequential | None = None
        if ffn_mult:
            inner = ffn_mult * dim
            self.ffn = nn.Sequential(
                nn.LayerNorm(dim), Linear(dim, inner), nn.ReLU(), nn.Dropout(dropout), Linear(inner, dim)
            )
            self.ffn_gate = nn.Parameter(torch.tensor([gate]))

    def forward(self, hidden: Tensor, speech: SpeechMemory, visible: Tensor) -> Tensor:
        """hidden (B', U, D_llm) in the LLM's precision, visible (B', U) -> the same, having read."""
        x = hidden.to(self.gate.dtype)
        x = x + self.gate.tanh() * self.dropout(self.cross_attention(self.cross_norm(x), speech, visible))
        if self.ffn is not None:
            x = x + self.ffn_gate.tanh() * self.dropout(self.ffn(x))
        return x.to(hidden.dtype)


@dataclass
class PerLayerState:
    """Keys and values of the speech for every reading layer; the LLM's own cache holds the text."""

    speech: list[KeysValues]  # of B utterances

    def select(self, rows: Tensor) -> "PerLayerState":
        """The speech is shared by the rows of an utterance, and they move within it only."""
        return self

    def watch(self) -> WatchedSpeech:
        """From now on the last layer's speech remembers how it is attended to."""
        self.speech[-1] = watched = self.speech[-1].watched()
        return watched


class PerLayerConnector(Connector):
    """``connector: per_layer``.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        text_layers: how many layers the LLM has.
        every: of so many layers the first reads.
        num_heads: H of the cross-attentions.
        ffn_mult: feed-forward width as a multiple of ``text_dim``; 0: no feed-forwards.
        dropout: dropout rate.
        gate: where the gates start; at 0, Flamingo's, the model starts as the plain text LLM.
    """

    reads_in_llm = True
    attends = True

    def __init__(
        self,
        text_dim: int,
        speech_dim: int,
        text_layers: int,
        every: int = 1,
        num_heads: int = 8,
        ffn_mult: int = 4,
        dropout: float = 0.1,
        gate: float = 0.0,
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"connector: every={every} must be >= 1")
        self.places = range(0, text_layers, every)
        layers = [ReadingLayer(text_dim, speech_dim, num_heads, ffn_mult, dropout, gate) for _ in self.places]
        self.layers: Sequence[ReadingLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.speech_dim = speech_dim
        initialize(self)

    @classmethod
    def beside(cls, text_dim: int, text_layers: int, speech_dim: int, **options: Any) -> "PerLayerConnector":
        """See base class."""
        return cls(text_dim, speech_dim, text_layers, **options)

    def start(self, speech: Speech) -> PerLayerState:
        """Projects speech (B, F, D_enc) to the keys and values of every layer, once per utterance."""
        return PerLayerState([layer.cross_attention.keys_values(speech.frames) for layer in self.layers])

    def seated(self) -> SeatedSpeechState:
        """See base class."""
        heard = SeatedFrames(self.speech_dim)
        return SeatedSpeechState(heard, [AbsorbedSpeech(layer.cross_attention, [], heard) for layer in self.layers])

    def forward(self, text: Tensor, mask: Tensor, visible: Tensor, state: ConnectorState | SeatedState) -> LLMInput:
        """The text (B, U, D_llm) as it is, and what reads the speech, visible (B, U), on its way through the LLM."""
        assert isinstance(state, PerLayerState | SeatedSpeechState)
        readers = [
            partial(layer, speech=speech, visible=visible)
            for layer, speech in zip(self.layers, state.speech, strict=True)
        ]
        return LLMInput(text, mask, dict(zip(self.places, readers, strict=True)))
