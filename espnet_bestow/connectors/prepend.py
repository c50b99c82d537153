"""Speech becomes the beginning of what the LLM reads ("Prepend"): the family of SALM, which the paper compares with.

The LLM's own attention then goes over speech and text, so its input is longer by the frames and its cache holds them.
All of the speech has to be there before the first token: it cannot stream. BLSP and SLM (:mod:`.blsp`, :mod:`.slm`)
differ in what stands between encoder and LLM alone.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.connectors.attention import initialize
from espnet_bestow.connectors.base import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.connectors.conformer import ConformerLayer, some_frame
from espnet_bestow.encoders.lengths import valid_frames

STRIDE = 2


@dataclass
class PrependState:
    """Speech as the LLM reads it, until it has."""

    prefix: Tensor  # (B, F', D_llm); F' is 0 afterwards
    mask: Tensor  # (B, F') bool, true at real frames

    def select(self, rows: Tensor) -> "PrependState":
        """The given text rows, each with the speech that it has not read yet."""
        return PrependState(self.prefix.index_select(0, rows), self.mask.index_select(0, rows))

    def take(self, rows: int) -> tuple[Tensor, Tensor]:
        """What ``rows`` text rows read first, now; several of them may be about one utterance."""
        prefix, mask = self.prefix, self.mask
        if rows != len(prefix):
            prefix, mask = (x.repeat_interleave(rows // len(x), 0) for x in (prefix, mask))
        self.prefix, self.mask = prefix[:, :0], mask[:, :0]
        return prefix, mask


def halve(convolution: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, F, D) through a convolution of stride 2, which hears silence behind each end: (B, F', D'), lengths (B,)."""
    heard = x * valid_frames(lengths, x.shape[1])[..., None]
    return convolution(heard.transpose(1, 2)).transpose(1, 2), -(-lengths // STRIDE)


class Prepending(Connector):
    """Base of those whose speech stands before the text."""

    hears_all = True

    @abstractmethod
    def adapt(self, speech: Speech) -> tuple[Tensor, Tensor]:
        """Speech (B, F, D_enc) -> what the LLM reads, (B, F', D_llm), and which of it is real, (B, F')."""

    def start(self, speech: Speech) -> PrependState:
        """Makes of the speech what the LLM reads, once per utterance."""
        return PrependState(*self.adapt(speech))

    def forward(self, text: Tensor, mask: Tensor, visible: Tensor, state: ConnectorState | SeatedState) -> LLMInput:
        """text (B, U, D_llm), mask (B, U) -> (B, F' + U, D_llm) on the first call, then the text as it is."""
        assert isinstance(state, PrependState)
        prefix, real = state.take(len(text))
        return LLMInput(torch.cat([prefix.to(text.dtype), text], 1), torch.cat([real, mask], 1))


class PrependConnector(Prepending):
    """``connector: prepend``. The defaults are SALM's: 4-fold sub-sampling and two conformer layers.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        dim: width of the layers.
        num_layers: how many; 0 leaves the sub-sampling and a Linear.
        num_heads: of their attention.
        ffn_mult: inner width of their feed-forwards as a multiple of ``dim``.
        kernel_size: of their convolutions.
        subsampling: encoder frames that become one position of the LLM, a power of two.
        dropout: dropout rate.
    """

    def __init__(  # noqa: PLR0913 (the keys of connector_conf)
        self,
        text_dim: int,
        speech_dim: int,
        dim: int = 512,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_mult: int = 4,
        kernel_size: int = 9,
        subsampling: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        if subsampling < 1 or subsampling & (subsampling - 1):
            raise ValueError(f"connector: subsampling={subsampling} must be a power of two")
        self.speech_in = nn.Linear(speech_dim, dim)
        strides = range(subsampling.bit_length() - 1)
        self.subsampling = nn.ModuleList(nn.Conv1d(dim, dim, 3, STRIDE, padding=1) for _ in strides)
        layers = [ConformerLayer(dim, num_heads, ffn_mult, kernel_size, dropout) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(dim, text_dim)
        initialize(self)

    def positions(self, frames: int) -> int:
        """See base class."""
        return -(-frames // STRIDE ** len(self.subsampling))

    def adapt(self, speech: Speech) -> tuple[Tensor, Tensor]:
        """See base class."""
        x, lengths = self.speech_in(speech.frames), speech.lengths
        for convolution in self.subsampling:
            x, lengths = halve(convolution, x, lengths)
            x = F.relu(x)
        valid = valid_frames(lengths, x.shape[1])
        heard = some_frame(valid)
        for layer in self.layers:
            x = layer(x, heard)
        return self.out(x), valid
