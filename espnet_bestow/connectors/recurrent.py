"""The recurrent ablation of Table 4 ("2 RNN + 1 X-Attn"): a GRU over the text, then one gated cross-attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.attention import CrossAttention, KeysValues, WatchedSpeech, initialize
from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedFrames, SeatedRecurrentState
from espnet_bestow.ops import Linear


@dataclass
class RecurrentState:
    """Speech keys and values, and the GRU's hidden state of each text row."""

    speech: KeysValues  # B utterances
    hidden: Tensor  # (layers, B', D)

    def select(self, rows: Tensor) -> "RecurrentState":
        """The given text rows; the speech is shared."""
        return RecurrentState(self.speech, self.hidden.index_select(1, rows))

    def watch(self) -> WatchedSpeech:
        """From now on the speech remembers how it is attended to."""
        self.speech = watched = self.speech.watched()
        return watched

    def enter(self, mask: Tensor) -> None:
        """New positions; the hidden state says all there is to know of earlier ones."""


class RecurrentConnector(Connector):
    """``connector: recurrent``.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        hidden: width of the GRU.
        num_layers: layers of the GRU.
        num_heads: heads of the cross-attention, which works at the LLM's width.
        ffn_mult: feed-forward width as a multiple of ``text_dim``.
        dropout: dropout rate.
    """

    attends = True

    def __init__(
        self,
        text_dim: int,
        speech_dim: int,
        hidden: int = 1024,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_mult: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.speech_in = Linear(speech_dim, text_dim)
        self.rnn = nn.GRU(text_dim, hidden, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
        self.rnn_out = Linear(hidden, text_dim)
        self.cross_attention = CrossAttention(text_dim, num_heads)
        self.gate = Linear(text_dim, 1)
        self.ffn = nn.Sequential(
            Linear(text_dim, ffn_mult * text_dim), nn.ReLU(), Linear(ffn_mult * text_dim, text_dim)
        )
        self.dropout = nn.Dropout(dropout)
        initialize(self)

    def start(self, speech: Speech) -> RecurrentState:
        """Projects the speech once."""
        projected = self.cross_attention.keys_values(self.speech_in(speech.frames))
        hidden = speech.frames.new_zeros(self.rnn.num_layers, speech.frames.shape[0], self.rnn.hidden_size)
        return RecurrentState(projected, hidden)

    def seated(self) -> SeatedRecurrentState:
        """See base class."""
        heard = SeatedFrames(self.speech_in.in_features)
        speech = AbsorbedSpeech(self.cross_attention, [self.speech_in], heard)
        return SeatedRecurrentState(
            heard, speech, self.rnn_out.weight.new_zeros(self.rnn.num_layers, self.rnn.hidden_size)
        )

    def forward(self, text: Tensor, mask: Tensor, visible: Tensor, state: ConnectorState | SeatedState) -> LLMInput:
        """text (B, U, D_llm) -> text embeddings that have read the speech."""
        assert isinstance(state, RecurrentState | SeatedRecurrentState)
        state.enter(mask)
        queries, state.hidden = self._run(text, mask, state.hidden)
        speech = self.dropout(self.cross_attention(self.rnn_out(queries), state.speech, visible))
        x = text + torch.sigmoid(self.gate(text)) * speech
        return LLMInput(x + self.dropout(self.ffn(x)), mask)

    def _run(self, text: Tensor, mask: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The GRU over the real positions of each row; padding neither reads nor changes the hidden state."""
        lengths = mask.sum(1)
        # Real positions first, in order, so that one GRU call serves rows whose padding stands anywhere.
        order = torch.argsort(mask.logical_not().int(), dim=1, stable=True)  # (B, U)
        wide = order.unsqueeze(-1)
        compact = text.gather(1, wide.expand_as(text))
        packed = nn.utils.rnn.pack_padded_sequence(
            compact, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, last = self.rnn(packed, hidden)
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=text.shape[1])
        # Rows without any real position ran one padding step above; it is discarded here.
        last = torch.where((lengths > 0)[None, :, None], last, hidden)
        restored = torch.zeros_like(out).scatter(1, wide.expand_as(out), out)
        return restored, last
